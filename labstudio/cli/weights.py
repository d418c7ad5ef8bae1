"""`labkit import` and `labkit export`."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Annotated

import tyro
from tyro.conf import Positional

from labkit.io import check_name
from labstudio.cli.options import Switch

Name = Annotated[str | None, tyro.conf.arg(metavar="NAME", help_behavior_hint="")]
Source = Annotated[str, tyro.conf.arg(metavar="SOURCE")]


def import_model(source: Positional[Source], name: Name = None, table: Switch = False) -> int:
    """Import a published model as a run: to write with, or to start a training from.

    Args:
        source: A published model's name (gpt2, gpt2-medium, gpt2-large, gpt2-xl, smollm2, owner/name), or a
            folder or file: safetensors, PyTorch, OpenAI's TensorFlow checkpoint, GGUF.
        name: Name of the run; the source's when not given.
        table: Print which published tensor became which parameter.
    """
    from labkit.training.setup import import_run
    from labkit.weights import load_model

    if name is not None:
        check_name(name, "import: name")  # before gigabytes are read
    model, tokenizer, report = load_model(source)
    if tokenizer is None:
        raise ValueError(
            f"import: {source} has no tokenizer that labkit reads, so no text could be written with it. Put "
            "the model's tokenizer.json, or its vocab.json and merges.txt, beside the weights. In Python the "
            "model alone can be loaded: load_model(source)."
        )
    if table:
        print(report.table().to_string(index=False))
    stem = Path(source).expanduser().resolve().stem if Path(source).expanduser().exists() else source
    run = import_run(model, tokenizer, name or re.sub(r"[^\w.-]", "-", stem), source)
    sizes = f"{model.num_parameters():,} parameters, {tokenizer.vocab_size:,} kinds of token"
    print(f"run {run.id}: {sizes}; {len(report.assigned)} parameters loaded, predictions are finite")
    print(f"Write with it: labkit sample {run.id}")
    return 0


def export(source: Positional[Source], folder: Positional[Path]) -> int:
    """Write a model as a folder that the transformers library loads, in the layout of GPT-2 or of Llama.

    Args:
        source: A run's name or folder (`labkit runs`), shipped for the model that comes with labkit, or
            anything that `labkit import` reads.
        folder: Where to; an earlier export there is replaced.
    """
    import torch

    from labkit.weights import load_model, save_gpt2, save_llama
    from labstudio.cli.models import open_model

    model, tokenizer = open_model(source)
    save = save_llama if model.config.norm == "rmsnorm" else save_gpt2
    save(model, folder, tokenizer)
    ids = torch.arange(min(8, model.config.vocab_size, model.config.context_length))[None]
    with torch.inference_mode():
        difference = float((load_model(folder).model(ids) - model(ids)).abs().max())
    layout = "Llama" if save is save_llama else "GPT-2"
    print(f"{folder}: {model.num_parameters():,} parameters in the layout of {layout}")
    print(f"Read back: logits differ by at most {difference:.1e}")
    print(f"Load it elsewhere: transformers.AutoModelForCausalLM.from_pretrained({str(folder)!r})")
    return 0

"""Trains the small model that comes with labkit and writes labkit/pretrained/: `make checkpoint`.

Ctrl-C saves a checkpoint; the same command goes on from there. To start afresh, remove runs/pretrained.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import os
import platform
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from checkpoint_card import SMOOTH, card
from safetensors.torch import save

from labkit.analysis import bits_per_byte, evaluate_loss, perplexity
from labkit.config import DataConfig, SampleConfig, TrainConfig, as_dict
from labkit.generation import generate
from labkit.model import GPT
from labkit.text import Corpus, Tokenizer, WindowDataset, load_corpus
from labkit.training import Run, build_trainer, fit, restore, runs_dir
from labkit.weights import PRETRAINED, load_pretrained
from labstudio.runs.kept import pack_runs

ROOT = Path(__file__).resolve().parent.parent
RECORDS = ROOT / "benchmarks" / "results" / "runs" / "pretrained.zip"

# GPT-2's architecture (with the exact GELU, which is four times faster on a CPU), so that other libraries
# that read GPT-2 read this model too.
PRESET = "gpt2"
SHAPE = {"context_length": 128, "d_model": 256, "n_layers": 3, "n_heads": 4, "activation": "gelu"}
DATA = DataConfig(corpus="shakespeare", tokenizer="bpe")
TRAIN = TrainConfig(
    max_steps=2000,
    batch_size=16,
    optimizer="muon",
    learning_rate=4e-3,
    muon_learning_rate=0.02,
    min_learning_rate=0.0,
    warmup_steps=100,
    betas=(0.9, 0.95),
    weight_decay=0.1,
    eval_every=200,
    sample_every=400,
    checkpoint_every=100,
    precision="fp32",
    threads=1,
    seed=0,
)
SAMPLES = SampleConfig(max_new_tokens=120, temperature=0.8, top_p=0.95)
PROMPTS = (
    "\n",
    "ACT I\n\nSCENE I.",
    "ROMEO.\n",
    "HAMLET.\n",
    "CLEOPATRA.\n",
    "FALSTAFF.\n",
    "FIRST CITIZEN.\n",
    "My lord,",
    "What is love?",
    "[Enter the KING",
)
SLICE_WINDOWS = 64
"""Windows of the held-out plays whose loss is stored, for a check that takes a second."""


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--out", type=Path, default=PRETRAINED, help="where to write (default: %(default)s)")
    parser.add_argument("--steps", type=int, help="train so many steps only, to try the script; needs --out")
    options = parser.parse_args(arguments)
    if options.steps and options.out == PRETRAINED:
        parser.error("--steps makes a worse model: give --out, so that it does not replace the shipped one.")
    recipe = TRAIN
    name = "pretrained"
    if options.steps:
        recipe = TrainConfig(**as_dict(TRAIN) | {"max_steps": options.steps, "warmup_steps": None})
        name = f"pretrained-{options.steps}-steps"

    trainer = build_trainer(PRESET, SHAPE, recipe, DATA, prompt=PROMPTS[0], device="cpu")
    if (runs_dir() / name / "config.json").is_file():
        run = Run.open(name)
        print(f"run {run.id}: goes on from step {restore(trainer, run)} of {trainer.total_steps}")
    else:
        run = Run.create(name)
    if not fit(trainer, run=run):
        print(f"Stopped at step {trainer.step}; the same command goes on from there.")
        return 130
    assert trainer.tokenizer is not None
    export(trainer.model, trainer.tokenizer, load_corpus(DATA.corpus), recipe, run, options.out)
    if not options.steps:
        keep_records(run)
    print(f"{options.out}: written")
    return 0


def export(
    model: GPT, tokenizer: Tokenizer, corpus: Corpus, recipe: TrainConfig, run: Run, folder: Path
) -> None:
    """Write weights, configuration, tokenizer and card, measured on the weights as they are stored."""
    half = {name: tensor.half().contiguous() for name, tensor in model.state_dict().items()}
    del half["head.weight"]  # the token embedding
    model.load_state_dict(half, strict=False)
    model.eval()
    weights = save(half)
    config = {
        "format": 1,
        "model": as_dict(model.config),
        "weights": {
            "dtype": "float16",
            "parameters": model.num_parameters(),
            "bytes": len(weights),
            "sha256": hashlib.sha256(weights).hexdigest(),
        },
        "tokenizer": {"kind": tokenizer.name, "fingerprint": tokenizer.fingerprint},
        "data": describe_data(corpus, tokenizer),
        "recipe": as_dict(recipe),
        "training": describe_training(run, recipe, model.config.context_length),
        "results": {split: measure(model, tokenizer, corpus, split) for split in ("val", "test")},
        "slice": {"windows": SLICE_WINDOWS, "loss": slice_loss(model, tokenizer, corpus)},
        "samples": as_dict(SAMPLES) | {"seeds": list(range(len(PROMPTS))), "prompts": PROMPTS},
    }
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "model.safetensors").write_bytes(weights)
    tokenizer.save(folder / "tokenizer.json")
    text = json.dumps(config, indent=2, ensure_ascii=False) + "\n"
    (folder / "config.json").write_text(text, encoding="utf-8")
    samples = write_samples(*load_pretrained(folder), PROMPTS)
    (folder / "README.md").write_text(card(config, corpus, run, samples), encoding="utf-8")


def describe_data(corpus: Corpus, tokenizer: Tokenizer) -> dict[str, Any]:
    return {
        "corpus": corpus.name,
        "source": corpus.source,
        "licence": corpus.licence,
        "fingerprint": corpus.fingerprint,
        "train_sha256": hashlib.sha256(corpus.text("train").encode()).hexdigest(),
        "train_tokens": len(corpus.encode(tokenizer, "train")),
        "val": [document.title for document in corpus.val],
        "test": [document.title for document in corpus.test],
    }


def describe_training(run: Run, recipe: TrainConfig, context_length: int) -> dict[str, Any]:
    rows = run.rows("metrics")
    steps = [row for row in rows if row["event"] == "step"]
    last = steps[-SMOOTH:]
    return {
        "steps": len(steps),
        "tokens": len(steps) * recipe.sequences_per_step(context_length) * context_length,
        "minutes": round(rows[-1]["seconds"] / 60, 1),
        "hardware": f"{recipe.threads} thread on a machine of {os.cpu_count()} cores ({platform.machine()})",
        "train_loss": round(sum(row["loss"] for row in last) / len(last), 4),
    }


def measure(model: GPT, tokenizer: Tokenizer, corpus: Corpus, split: str) -> dict[str, Any]:
    """Loss over whole plays: each token but the first is predicted once, in windows side by side."""
    windows = WindowDataset(corpus.encode(tokenizer, split), model.config.context_length, keep_tail=True)
    loss = evaluate_loss(model, *next(windows.batches(len(windows))))
    n_bytes = sum(len(document.text.encode()) for document in corpus.split(split))
    bits = bits_per_byte(loss, windows.total_tokens, n_bytes)
    measured = {"loss": loss, "perplexity": perplexity(loss), "bits_per_byte": bits}
    counted = {"tokens": windows.total_tokens, "bytes": n_bytes}
    return {name: round(value, 4) for name, value in measured.items()} | counted


def slice_loss(model: GPT, tokenizer: Tokenizer, corpus: Corpus) -> float:
    windows = WindowDataset(corpus.encode(tokenizer, "val"), model.config.context_length)
    return round(evaluate_loss(model, *next(windows.batches(SLICE_WINDOWS))), 5)


def write_samples(model: GPT, tokenizer: Tokenizer, prompts: Sequence[str]) -> list[str]:
    """A text for each prompt, whose number is the seed."""
    settings = SampleConfig(**as_dict(SAMPLES) | {"eos_id": tokenizer.eos_id})
    return [
        tokenizer.decode(generate(model, tokenizer.encode(prompt), settings, seed=seed))
        for seed, prompt in enumerate(prompts)
    ]


def keep_records(run: Run) -> None:
    """Pack configuration and metrics of the run to where the repository keeps what its texts quote."""
    files = ("config.json", "metrics.jsonl")
    pack_runs(
        RECORDS, {"pretrained": {name: (run.path / name).read_text(encoding="utf-8") for name in files}}
    )


if __name__ == "__main__":
    sys.exit(main())

"""From settings to a trainer: what `labkit train`, `labkit resume` and sweeps share."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from labkit.config import DataConfig, GPTConfig, TrainConfig, as_dict
from labkit.model import GPT
from labkit.text import (
    EncodedText,
    SequenceDataset,
    Tokenizer,
    WindowDataset,
    build_tokenizer,
    is_encoded,
    load_corpus,
    load_token_sequences,
)
from labkit.training.checkpoint import CheckpointInfo, load_weights, save_checkpoint
from labkit.training.run import Run
from labkit.training.trainer import Trainer, TrainingData

HELD_OUT = 2**20
"""Ids of an encoded folder to evaluate on, at most."""


def build_trainer(
    preset: str,
    shape: dict[str, Any],
    train: TrainConfig,
    data: DataConfig,
    *,
    prompt: str = "\n",
    device: str | None = None,
    init_from: str | None = None,
) -> Trainer:
    """A trainer from settings alone; it remembers them in `source`, so that a run can be rebuilt.

    shape: fields of GPTConfig that replace the preset's; vocab_size is the tokenizer's.
    init_from: name or folder of a run whose newest weights to begin with (a warm start).
    Weights, data order and dropout follow from train.seed.
    Raises ValueError for settings that do not fit together.
    """
    source = {
        "preset": preset,
        "shape": shape,
        "train": as_dict(train),
        "data": as_dict(data),
        "prompt": prompt,
        "init_from": init_from,
    }
    settings = {key: value for key, value in shape.items() if key != "vocab_size"}
    context = GPTConfig.preset(preset, **settings).context_length
    tokenizer, train_data, val_data = load_data(data, context)
    torch.manual_seed(train.seed)
    model = GPT(GPTConfig.preset(preset, **settings, vocab_size=tokenizer.vocab_size))
    if init_from is not None:
        start = Run.open(init_from)
        if (known := start.config()["tokenizer"]) != tokenizer.fingerprint:
            raise ValueError(f"init_from: run {start.id} has another tokenizer ({known}).")
        load_weights(start.newest_whole()[0], model)
    return Trainer(
        model, train_data, val_data, train, tokenizer=tokenizer, prompt=prompt, device=device, source=source
    )


def rebuild_trainer(run: Run, device: str | None = None) -> Trainer:
    """The trainer that a run was started with.  Raises ValueError for a run that no settings describe."""
    source = run.config().get("source")
    if source is None:
        raise ValueError(
            f"Run {run.id} was started in a notebook. Build its trainer there again, then "
            "restore(trainer, run) and fit(trainer, run=run)."
        )
    try:
        train, data = TrainConfig(**source.pop("train")), DataConfig(**source.pop("data"))
        return build_trainer(**source, train=train, data=data, device=device)
    except (AttributeError, KeyError, TypeError) as error:
        raise ValueError(
            f"{run.path / 'config.json'} is damaged, or of another version of labkit ({error}). "
            "Put back a copy of it."
        ) from error


def import_run(model: GPT, tokenizer: Tokenizer, name: str, source: str) -> Run:
    """A run whose only checkpoint, of step 0, is a model from elsewhere: to write with, and to begin from.

    source: where it is from, for the record.
    """
    run = Run.create(name)
    folder = run.checkpoints_path / f"step-{0:08d}"
    try:
        tokenizer.save(run.path / "tokenizer.json")
        run.keep(CheckpointInfo(save_checkpoint(folder, model, 0), 0, None), keep_last=1)
        parameters = model.num_parameters()
        shape = {"model": as_dict(model.config), "tokenizer": tokenizer.fingerprint, "parameters": parameters}
        run.write_config({**shape, "imported_from": source, "source": None, "total_steps": 0})
    except BaseException:
        shutil.rmtree(run.path, ignore_errors=True)
        raise
    return run


def load_data(
    data: DataConfig, context_length: int
) -> tuple[Tokenizer, TrainingData, Tensor | WindowDataset | SequenceDataset]:
    """Tokenizer, training data and held-out data.  The tokenizer is that of the whole corpus.

    Raises ValueError for text or settings that do not fit, naming them.
    """
    if data.sequences is not None:
        return _sequences(Path(data.sequences), context_length)
    if is_encoded(data.corpus):
        return _encoded(data, context_length)
    corpus = load_corpus(data.corpus)
    tokenizer = build_tokenizer(data.tokenizer, corpus)
    train = corpus.encode(tokenizer, "train", groups=data.groups)[: data.max_tokens]
    val = corpus.encode(tokenizer, "val", groups=data.val_groups)
    if data.stride is None:
        return tokenizer, train, val
    return tokenizer, WindowDataset(train, context_length, data.stride), val


def _sequences(path: Path, context_length: int) -> tuple[Tokenizer, SequenceDataset, SequenceDataset]:
    """Sequences of GPT-2 ids, of which the last tenth is held out."""
    from labkit.text import GPT2Tokenizer

    tokenizer = GPT2Tokenizer()
    end = tokenizer.eos_id or 0
    windows = load_token_sequences(path, context_length, pad_id=end)
    held_out = max(1, len(windows) // 10)
    if len(windows) < 2:
        raise ValueError(f"{path}: one window is too few; at least two are needed, one to be held out.")
    parts = [
        SequenceDataset(windows.inputs[part], windows.targets[part])
        for part in (slice(None, -held_out), slice(-held_out, None))
    ]
    return tokenizer, parts[0], parts[1]


def _encoded(data: DataConfig, context_length: int) -> tuple[Tokenizer, np.ndarray, Tensor]:
    """What `labkit encode` wrote; the last documents, about a hundredth of the ids, are held out."""
    if data.groups or data.val_groups or data.stride:
        raise ValueError("DataConfig: groups and stride go with a corpus of text, not with encoded ids.")
    encoded = EncodedText(data.corpus)
    ids, begins = encoded.ids, encoded.documents
    latest = len(ids) - max(len(ids) // 100, context_length + 1)
    if latest <= context_length:
        raise ValueError(f"{data.corpus}: {len(ids)} ids are too few for context_length={context_length}.")
    last = int(begins[begins <= latest][-1])
    cut = last if last > len(ids) // 2 else latest  # one long document is cut
    held_out = torch.from_numpy(ids[cut : cut + HELD_OUT].astype("int64"))
    return encoded.tokenizer(), ids[: min(cut, data.max_tokens or cut)], held_out

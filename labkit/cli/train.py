"""`labkit train`."""

from __future__ import annotations

from tyro.conf import OmitArgPrefixes

from labkit.cli.options import ModelOptions
from labkit.config import TokenizerName, TrainConfig


def train(
    model: OmitArgPrefixes[ModelOptions] = ModelOptions(),
    train: OmitArgPrefixes[TrainConfig] = TrainConfig(sample_every=250, checkpoint_every=250),
    corpus: str = "shakespeare",
    tokenizer: TokenizerName = "char",
    name: str | None = None,
    prompt: str = "\n",
    device: str | None = None,
) -> int:
    """Train a model and record the run in runs/NAME.

    Args:
        corpus: Name in corpus/corpora.toml, or a path to your own text.
        tokenizer: What turns text into tokens; bpe is trained on the corpus (4,096 pieces).
        name: Name of the run; the preset and the corpus when not given.
        prompt: Where samples start.
        device: cpu, cuda or mps; the best there is when not given.
    """
    import torch

    from labkit.model import GPT
    from labkit.text import build_tokenizer, load_corpus
    from labkit.training import Run, Trainer, fit

    text = load_corpus(corpus)
    pieces = build_tokenizer(tokenizer, text)
    torch.manual_seed(train.seed)
    trainer = Trainer(
        GPT(model.build(pieces.vocab_size)),
        text.encode(pieces, "train"),
        text.encode(pieces, "val"),
        train,
        tokenizer=pieces,
        prompt=prompt,
        device=device,
    )
    run = Run.create(name or f"{model.preset}-{text.name}")
    print(f"run {run.id}: {trainer.model.num_parameters():,} parameters, {trainer.total_steps:,} steps")
    finished = fit(trainer, run=run)
    state = "finished" if finished else f"stopped at step {trainer.step}; the checkpoint is saved"
    print(f"run {run.id} {state}. Write with it: labkit sample {run.id}")
    return 0 if finished else 130

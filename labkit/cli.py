"""The command `labkit`. Each subcommand imports what it needs, so that --help is instant."""

from __future__ import annotations

import codecs
import sys
from dataclasses import asdict, dataclass, replace
from typing import Literal

import tyro
from tyro.conf import OmitArgPrefixes, Positional

from labkit.config import GPTConfig, Positions, SampleConfig, TrainConfig

TokenizerName = Literal["char", "bpe", "gpt2"]
app = tyro.extras.SubcommandApp()


@dataclass(frozen=True, kw_only=True)
class ModelOptions:
    """A preset, and what to change in it."""

    preset: str = "char-mini"
    """Model shape: char-mini, report, nano, gpt2, gpt2-medium, gpt2-large, gpt2-xl, smollm2-135m."""
    context_length: int | None = None
    """Longest sequence, in tokens."""
    d_model: int | None = None
    """Features per position."""
    n_layers: int | None = None
    """Number of blocks."""
    n_heads: int | None = None
    """Attention heads per block."""
    dropout: float | None = None
    """Dropout on embeddings and residuals."""
    positions: Positions | None = None
    """How order enters the model."""

    def build(self, vocab_size: int | None = None) -> GPTConfig:
        """The model's configuration, for a tokenizer of this size."""
        changes = {name: value for name, value in asdict(self).items() if value is not None}
        preset = changes.pop("preset")
        if vocab_size is not None:
            changes["vocab_size"] = vocab_size
        return GPTConfig.preset(preset, **changes)


@app.command
def fetch(names: Positional[tuple[str, ...]] = ()) -> int:
    """Fetch the course's texts and tokenizer files into the cache and verify them.

    Args:
        names: Which assets; all of them when none is named.
    """
    from labkit.text import fetch as fetch_assets

    for name, path in fetch_assets(names or None).items():
        print(f"{name}: {path}")
    return 0


@app.command
def doctor(
    model: OmitArgPrefixes[ModelOptions] = ModelOptions(),
    train: OmitArgPrefixes[TrainConfig] = TrainConfig(),
    corpus: str = "shakespeare",
    tokenizer: TokenizerName = "char",
    stride: int | None = None,
) -> int:
    """Check that training would work: versions, memory, disk, text, model, causal mask.

    Args:
        corpus: Name in corpus/corpora.toml, or a path to your own text.
        tokenizer: What turns text into tokens.
        stride: Tokens between windows; the context length when not given.
    """
    from labkit.doctor import report, run_checks

    return report(run_checks(model.build(), train, corpus, tokenizer, stride))


@app.command
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


@app.command
def sample(
    run: Positional[str],
    settings: OmitArgPrefixes[SampleConfig] = SampleConfig(),
    prompt: str = "\n",
    seed: int = 0,
) -> int:
    """Write text with a trained model, until it ends its text or reaches --max-new-tokens.

    Args:
        run: Name or folder of a run; `labkit runs` lists them.
        prompt: Text to continue.
        seed: The same seed gives the same text.
    """
    from labkit.generation import stream
    from labkit.training import Run

    model, tokenizer = Run.open(run).load()
    ids = tokenizer.encode(prompt)
    if settings.eos_id is None:
        settings = replace(settings, eos_id=tokenizer.eos_id)
    characters = codecs.getincrementaldecoder("utf-8")("replace")
    print(prompt, end="")
    for token in stream(model, ids, settings, seed=seed):
        if token != settings.eos_id:
            print(characters.decode(tokenizer.token_bytes(token)), end="", flush=True)
    print(characters.decode(b"", final=True))
    return 0


@app.command
def runs(name: Positional[str | None] = None) -> int:
    """List the runs, or show one.

    Args:
        name: The run to show: what it was started with, and its held-out loss over time.
    """
    import pandas as pd

    from labkit.training import Run, list_runs

    if name is not None:
        run = Run.open(name)
        for section, values in run.config().items():
            print(f"{section}: {values}")
        print(run.metrics("evaluation").to_string(index=False))
        return 0
    rows = []
    for run in list_runs():
        evaluations = run.metrics("evaluation")
        last = evaluations.iloc[-1].to_dict() if len(evaluations) else {}
        rows.append(
            {
                "run": run.id,
                "parameters": f"{run.config()['parameters']:,}",
                "steps": f"{int(last.get('step', 0))}/{run.config()['total_steps']}",
                "val loss": last.get("val_loss"),
                "perplexity": last.get("perplexity"),
            }
        )
    print(pd.DataFrame(rows).round(3).to_string(index=False) if rows else "No runs yet: labkit train")
    return 0


def main(args: list[str] | None = None) -> None:
    """Entry point; exits with 0, 1 (a check failed), 2 (bad input) or 130 (interrupted)."""
    for output in (sys.stdout, sys.stderr):
        if hasattr(output, "reconfigure"):
            output.reconfigure(errors="replace")
    try:
        sys.exit(app.cli(prog="labkit", description="Build, train and run your own GPT.", args=args))
    except (ValueError, RuntimeError, OSError) as error:
        sys.exit(_report(error))
    except KeyboardInterrupt:
        sys.exit(130)


def _report(error: Exception) -> int:
    print(f"labkit: {error}", file=sys.stderr)
    return 2


if __name__ == "__main__":
    main()

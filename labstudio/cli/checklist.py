"""The checklist before training (`labkit doctor`): what would fail, what might, and how to fix it."""

from __future__ import annotations

import dataclasses
import importlib.metadata
import platform
import shutil
import tempfile
import textwrap
from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, Literal

import psutil
import torch
from packaging.requirements import Requirement

from labkit.analysis.costs import largest_batch, parameter_count, training_memory
from labkit.config import DataConfig, GPTConfig, TrainConfig
from labkit.device import best_device, choose_precision, describe_device
from labkit.io import runs_dir
from labkit.model import GPT
from labkit.text import CharTokenizer, SequenceDataset, load_corpus
from labkit.training.setup import load_data

Status = Literal["ok", "warn", "fail"]
Finding = tuple[Status, str] | tuple[Status, str, str]
"""Status, what was found, and how to fix it where it is not well."""

GIB = 2**30
ROOM = 0.9
"""The part of the free memory that training may take: allocator and driver need the rest."""


@dataclass(frozen=True)
class Check:
    """One line of the checklist: what was found, and how to fix it where it is not well."""

    name: str
    status: Status
    detail: str
    fix: str = ""


@dataclass
class Plan:
    """What someone is about to train, and what follows from it, worked out when first needed."""

    given: GPTConfig
    train: TrainConfig
    data: DataConfig
    out: Path

    @cached_property
    def loaded(self) -> tuple[Any, Any, Any]:
        """Tokenizer, training ids and held-out ids, as `labkit train` loads them."""
        return load_data(dataclasses.replace(self.data, stride=None), self.given.context_length)

    def tokens(self) -> tuple[int, int]:
        """How many tokens there are to train on, and held out."""
        train, held_out = (
            part.total_tokens if isinstance(part, SequenceDataset) else len(part) for part in self.loaded[1:]
        )
        return train, held_out

    @cached_property
    def model(self) -> GPTConfig:
        """The model with the tokenizer's vocabulary, as `labkit train` builds it."""
        try:
            vocab_size = self.loaded[0].vocab_size
        except Exception:  # the check of the text reports it
            vocab_size = self.given.vocab_size
        return dataclasses.replace(self.given, vocab_size=vocab_size)


def run_checks(
    model: GPTConfig, train: TrainConfig, data: DataConfig = DataConfig(), out: Path | None = None
) -> list[Check]:
    """Every check, in the order of the checklist. None raises: an exception becomes a failed check.

    out: the folder that runs are written to.
    """
    plan = Plan(model, train, data, Path(out) if out else runs_dir())
    checks: list[Check] = []
    for name, check in CHECKS.items():
        if name in NEED_TEXT and any(each.name == "text" and each.status == "fail" for each in checks):
            checks.append(Check(name, "warn", "not checked, because the text does not load"))
            continue
        try:
            checks.append(Check(name, *check(plan)))
        except Exception as error:
            message = " ".join(str(error).split()) or type(error).__name__
            checks.append(Check(name, "fail", message, FIXES.get(name, "Fix what the message names first.")))
    return checks


def format_table(checks: list[Check]) -> str:
    """The checks as plain text: status, name and detail, and below each how to fix it."""
    width = max(len(check.name) for check in checks)
    lines: list[str] = []
    for check in checks:
        lines += _wrapped(check.detail, f"{check.status:<4}  {check.name:<{width}}  ")
        if check.fix:
            lines += _wrapped(check.fix, " " * (width + 8) + "-> ")
    failed = sum(check.status == "fail" for check in checks)
    warned = sum(check.status == "warn" for check in checks)
    lines += ["", f"{len(checks)} checks: {failed} would fail, {warned} to look at."]
    return "\n".join(lines)


def report(checks: list[Check]) -> int:
    """Print the checklist; returns the exit code, 1 where something would fail."""
    print(format_table(checks))
    return int(any(check.status == "fail" for check in checks))


def _wrapped(text: str, lead: str) -> list[str]:
    return textwrap.wrap(
        text,
        width=max(100, len(lead) + 40),
        initial_indent=lead,
        subsequent_indent=" " * len(lead),
        break_long_words=False,
        break_on_hyphens=False,
    )


def _packages(_: Plan) -> Finding:
    wrong = []
    requirements = map(Requirement, importlib.metadata.requires("labkit") or [])
    needed = [each for each in requirements if each.marker is None or each.marker.evaluate({"extra": ""})]
    for requirement in needed:
        try:
            version = importlib.metadata.version(requirement.name)
        except importlib.metadata.PackageNotFoundError:
            version = "missing"
        if version == "missing" or not requirement.specifier.contains(version, prereleases=True):
            wrong.append(f"{requirement.name} is {version}, needed is {requirement.specifier}")
    if wrong:
        raise ValueError("; ".join(wrong))
    return "ok", f"{len(needed)} as required; Python {platform.python_version()}, torch {torch.__version__}"


def _device(plan: Plan) -> Finding:
    device = best_device()
    free, total = _memory(device)
    precision, fast = (choose_precision(each, device) for each in (plan.train.precision, "auto"))
    found = f"{describe_device(device)}; {free / GIB:.1f} of {total / GIB:.1f} GiB free; {precision}"
    if precision not in ("fp32", fast):
        return "warn", found, f"This device is slow at {precision}; it does {fast} fast: precision='auto'."
    return "ok", found


def _memory(device: torch.device) -> tuple[int, int]:
    """Free and total bytes where the model will live."""
    if device.type == "cuda":
        return torch.cuda.mem_get_info(device)
    memory = psutil.virtual_memory()
    return memory.available, memory.total


def _disk(plan: Plan) -> Finding:
    # Weights and two moments in each; the last ones and the best stay beside the new one.
    needed = (plan.train.keep_last + 2) * 12 * parameter_count(plan.model)
    free = shutil.disk_usage(_existing(plan.out)).free
    found = f"{free / GIB:.1f} GiB free, checkpoints need {_size(needed)}"
    if free < needed:
        return "fail", found, f"Free some space, or write elsewhere than {plan.out}."
    return "ok", found


def _existing(folder: Path) -> Path:
    """The folder itself, or the nearest parent that exists."""
    return next(path for path in (folder.resolve(), *folder.resolve().parents) if path.is_dir())


def _text(plan: Plan) -> Finding:
    train, held_out = plan.tokens()
    source = plan.data.sequences or plan.data.corpus
    return "ok", f"{source}: {train:,} tokens to train on, {held_out:,} held out"


def _tokenizer(plan: Plan) -> Finding:
    tokenizer, train, _ = plan.loaded
    # Folders of ids carry the tokenizer that made them, and have no text.
    sample = load_corpus(plan.data.corpus).train[0].text[:20_000] if isinstance(train, torch.Tensor) else ""
    if not isinstance(tokenizer, CharTokenizer):
        sample += " naïve café 3.14159 日本語 🙂\n"
    if tokenizer.decode(tokenizer.encode(sample)) != sample:
        raise ValueError("decode(encode(text)) is not the text")
    return "ok", f"{tokenizer.vocab_size:,} tokens, round-trips {len(sample):,} characters"


def _windows(plan: Plan) -> Finding:
    context, (tokens, held_out) = plan.model.context_length, plan.tokens()
    stride = plan.data.stride or context
    # A window needs one token more than the context: the target of its last position.
    counts = [max(0, (count - context - 1) // stride + 1) for count in (tokens, held_out)]
    if isinstance(plan.loaded[1], SequenceDataset):
        counts = [len(part) for part in plan.loaded[1:]]
    found = f"context {context}, stride {stride}: {counts[0]:,} windows to train on, {counts[1]:,} held out"
    if not all(counts):
        fix = f"Use a longer text, or a context_length below {min(tokens, held_out)}."
        return "fail", f"{found}; the text is shorter than one window", fix
    if stride > context:
        fix = f"Use a stride of at most {context}, or that text is never seen."
        return "warn", f"{found}; {stride - context} tokens skipped between windows", fix
    steps = plan.train.total_steps(tokens, context)
    epochs = steps * plan.train.sequences_per_step(context) * context / tokens
    found += f"; {steps:,} steps read each token {epochs:.2g} times"
    if epochs > 20:
        return "warn", found, "So much repetition memorises the text: train shorter or add text."
    return "ok", found


def _shapes(plan: Plan) -> Finding:
    config = plan.model
    found = (
        f"{parameter_count(config):,} parameters; d_model {config.d_model} = {config.n_heads} heads x "
        f"{config.head_dim}, {config.n_layers} layers, context {config.context_length}"
    )
    if config.head_dim < 8:
        fix = f"Use fewer heads, such as n_heads={max(1, config.d_model // 32)}."
        return "warn", f"{found}; heads of {config.head_dim} features see little", fix
    if config.ff_dim < config.d_model:
        fix = f"Usual is d_ff={4 * config.d_model}."
        return "warn", f"{found}; d_ff={config.ff_dim} is narrower than d_model", fix
    return "ok", found


def _memory_needed(plan: Plan) -> Finding:
    device, train = best_device(), plan.train

    def parts(sequences: int) -> dict[str, int]:
        return training_memory(
            plan.model,
            sequences,
            optimizer=train.optimizer,
            precision=choose_precision(train.precision, device),
            activation_checkpointing=train.activation_checkpointing,
            device="cpu" if device.type == "cpu" else "cuda",
        )

    at_once = train.micro_batch_size or train.sequences_per_step(plan.model.context_length)
    needed, free = sum(parts(at_once).values()), _memory(device)[0]
    fixed = sum(parts(1)[name] for name in ("weights", "gradients", "optimizer"))
    found = (
        f"about {_size(needed)} ({_size(fixed)} weights, gradients and moments, the rest for batches of "
        f"{at_once}), {_size(free)} free"
    )
    if needed <= ROOM * free:
        return "ok", found
    status: Status = "fail" if needed > free else "warn"
    if fits := largest_batch(ROOM * free, lambda sequences: sum(parts(sequences).values())):
        return status, found, f"Use micro_batch_size={fits} or less, or a shorter context_length."
    return status, found, "Even one sequence does not fit: use a smaller model or vocabulary."


def _size(count: float) -> str:
    return f"{count / GIB:.1f} GiB" if count >= GIB else f"{count / 2**20:.0f} MiB"


def _optimizer(plan: Plan) -> Finding:
    train = plan.train
    name = "AdamW" if train.optimizer == "adamw" else f"Muon {train.muon_learning_rate:g} and AdamW"
    found = (
        f"{name}, learning_rate {train.learning_rate:g}, betas {train.betas}, decay {train.weight_decay:g}"
    )
    fix = "Usual are 1e-4 (large models) to 5e-3 (small ones)."
    if train.learning_rate >= 0.05:
        return "fail", f"{found}; steps this large diverge", fix
    if not 1e-5 <= train.learning_rate <= 1e-2:
        return "warn", found, fix
    if train.betas[1] < 0.9 or train.betas[0] > train.betas[1]:
        return "warn", found, "Usual are betas (0.9, 0.95) to (0.9, 0.999)."
    return "ok", found


def _causal_mask(plan: Plan) -> Finding:
    """Change each token in turn: the logits before it must stay the same, those at it must change."""
    heads, seq = 4, 8
    config = dataclasses.replace(
        plan.model,
        vocab_size=17,
        context_length=seq,
        d_model=32,
        n_layers=2,
        n_heads=heads,
        n_kv_heads=None if plan.model.kv_heads == plan.model.n_heads else 2,
        d_ff=None,
    )
    with torch.random.fork_rng(devices=[]), torch.no_grad():
        torch.manual_seed(0)
        model = GPT(config).double().eval()
        ids = torch.arange(seq)[None]
        before = model(ids)
        for changed in range(seq):
            other = ids.clone()
            other[0, changed] = 16
            difference = (model(other) - before).abs().amax(-1)[0]  # (seq,)
            if bool((difference[:changed] > 1e-12).any()):
                raise ValueError(f"changing token {changed} changes what the model says before it")
            if float(difference[changed]) == 0:
                raise ValueError(f"changing token {changed} changes nothing at its own position")
    return "ok", f"no position of a tiny model like this one sees a later one ({seq} tried)"


def _checkpoint_folder(plan: Plan) -> Finding:
    folder = _existing(plan.out)
    if plan.out.exists() and not plan.out.is_dir():
        raise ValueError(f"{plan.out} is a file")
    with tempfile.TemporaryFile(dir=folder) as file:
        file.write(b"labkit")
    return "ok", f"{plan.out} can be written"


CHECKS: dict[str, Callable[[Plan], Finding]] = {
    "packages": _packages,
    "device": _device,
    "disk": _disk,
    "text": _text,
    "tokenizer": _tokenizer,
    "windows": _windows,
    "model": _shapes,
    "memory": _memory_needed,
    "optimizer": _optimizer,
    "causal mask": _causal_mask,
    "checkpoints": _checkpoint_folder,
}

NEED_TEXT = ("tokenizer", "windows")

FIXES = {
    "packages": "python -m pip install -r requirements.txt",
    "text": "Name a known corpus, a file or folder of .txt or .md files in UTF-8, or a folder made by "
    "`labkit encode`; `labkit fetch` renews damaged files.",
    "tokenizer": "`labkit fetch` renews damaged files.",
    "causal mask": "The attention was changed: it needs is_causal=True, or -inf above the diagonal.",
    "checkpoints": "Name another folder with LABKIT_OUT, or make this one writable.",
}

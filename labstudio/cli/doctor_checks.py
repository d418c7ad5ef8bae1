"""The single checks of `labkit doctor`: each looks at one thing that training could fail on."""

from __future__ import annotations

import dataclasses
import importlib.metadata
import platform
import shutil
import tempfile
from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Literal

import psutil
import torch
from packaging.requirements import Requirement
from packaging.specifiers import SpecifierSet

from labkit.config import GPTConfig, TrainConfig
from labkit.device import best_device, choose_precision, describe_device
from labkit.model import GPT
from labkit.text import Corpus, Tokenizer, build_tokenizer, load_corpus

Status = Literal["ok", "warn", "fail"]

GIB = 2**30
BYTES_PER_PARAMETER = 16  # weight, gradient and AdamW's two moments


Finding = tuple[Status, str] | tuple[Status, str, str]


@dataclass
class Plan:
    """What someone is about to train, and what follows from it, worked out when first needed."""

    given: GPTConfig
    train: TrainConfig
    corpus_name: str
    tokenizer_name: str
    stride: int | None
    out: Path

    @cached_property
    def corpus(self) -> Corpus:
        return load_corpus(self.corpus_name)

    @cached_property
    def tokenizer(self) -> Tokenizer:
        return build_tokenizer(self.tokenizer_name, self.corpus)

    @cached_property
    def model(self) -> GPTConfig:
        """The model with the tokenizer's vocabulary, as `labkit train` builds it."""
        try:
            vocab_size = self.tokenizer.vocab_size
        except Exception:  # that the tokenizer does not load is reported by its own check
            vocab_size = self.given.vocab_size
        return dataclasses.replace(self.given, vocab_size=vocab_size)

    @cached_property
    def parameters(self) -> int:
        with torch.device("meta"):
            return GPT(self.model).num_parameters()


def _python(_: Plan) -> Finding:
    needed = importlib.metadata.metadata("labkit")["Requires-Python"]
    found = f"{platform.python_version()}, needed is {needed}"
    if not SpecifierSet(needed).contains(platform.python_version(), prereleases=True):
        return "fail", found, "Set up again with a newer Python: make PYTHON=python3.12 lab"
    return "ok", found


def _packages(_: Plan) -> Finding:
    wrong = []
    requirements = [Requirement(line) for line in importlib.metadata.requires("labkit") or []]
    needed = [each for each in requirements if each.marker is None or each.marker.evaluate({"extra": ""})]
    for requirement in needed:
        try:
            version = importlib.metadata.version(requirement.name)
        except importlib.metadata.PackageNotFoundError:
            version = "missing"
        if version == "missing" or not requirement.specifier.contains(version, prereleases=True):
            wrong.append(f"{requirement.name} is {version}, needed is {requirement.specifier}")
    if wrong:
        return "fail", "; ".join(wrong), "python -m pip install -r requirements.txt"
    return "ok", f"{len(needed)} as required; torch {torch.__version__}"


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
    needed = (plan.train.keep_last + 2) * 12 * plan.parameters
    free = shutil.disk_usage(_existing(plan.out)).free
    found = f"{free / GIB:.1f} GiB free, checkpoints need {_size(needed)}"
    if free < needed:
        return "fail", found, f"Free some space, or write elsewhere than {plan.out}."
    return "ok", found


def _existing(folder: Path) -> Path:
    """The folder itself, or the nearest one above it that is there."""
    return next(path for path in (folder.resolve(), *folder.resolve().parents) if path.is_dir())


def _text(plan: Plan) -> Finding:
    sizes = {split: len(plan.corpus.text(split)) for split in ("train", "val", "test")}
    return "ok", f"{plan.corpus_name}: " + ", ".join(f"{each} {size:,}" for each, size in sizes.items())


def _tokenizer(plan: Plan) -> Finding:
    tokenizer = plan.tokenizer
    sample = plan.corpus.train[0].text[:20_000]
    if plan.tokenizer_name != "char":
        sample += " naïve café 3.14159 日本語 🙂\n"
    if tokenizer.decode(tokenizer.encode(sample)) != sample:
        return "fail", "decode(encode(text)) is not the text", MENDS["tokenizer"]
    found = f"{plan.tokenizer_name}, {tokenizer.vocab_size:,} tokens, round-trips {len(sample):,} characters"
    return "ok", found


def _windows(plan: Plan) -> Finding:
    context = plan.model.context_length
    stride = context if plan.stride is None else plan.stride
    if stride < 1:
        return "fail", f"stride={stride}", f"Use a stride from 1 to {context}."
    tokens = {split: len(plan.corpus.encode(plan.tokenizer, split)) for split in ("train", "val")}
    # A window needs one token more than the context: the target of its last position.
    windows = {split: max(0, (count - context - 1) // stride + 1) for split, count in tokens.items()}
    found = (
        f"{tokens['train']:,} tokens to train on, {tokens['val']:,} held out; context {context}, "
        f"stride {stride}: {windows['train']:,} and {windows['val']:,} windows"
    )
    for split, count in tokens.items():
        if count <= context:
            mend = f"Use a longer text, or a context_length below {count}."
            return "fail", f"{found}; {split} is shorter than one window", mend
    if stride > context:
        mend = f"Use a stride of at most {context}, or that text is never seen."
        return "warn", f"{found}; {stride - context} tokens skipped between windows", mend
    steps = plan.train.total_steps(tokens["train"], context)
    passes = steps * plan.train.sequences_per_step(context) * context / tokens["train"]
    found += f"; {steps:,} steps read each token {passes:.2g} times"
    if passes > 20:
        return "warn", found, "So much repetition memorises the text: train shorter or add text."
    return "ok", found


def _shapes(plan: Plan) -> Finding:
    config = dataclasses.replace(plan.model)  # checks every field again
    found = (
        f"{plan.parameters:,} parameters; d_model {config.d_model} = {config.n_heads} heads x "
        f"{config.head_dim}, {config.n_layers} layers, context {config.context_length}"
    )
    if config.head_dim < 8:
        mend = f"Use fewer heads, such as n_heads={max(1, config.d_model // 32)}."
        return "warn", f"{found}; heads of {config.head_dim} features see little", mend
    if config.ff_dim < config.d_model:
        mend = f"Usual is d_ff={4 * config.d_model}."
        return "warn", f"{found}; d_ff={config.ff_dim} is narrower than d_model", mend
    return "ok", found


def _memory_needed(plan: Plan) -> Finding:
    fixed = BYTES_PER_PARAMETER * plan.parameters
    per_sequence = sequence_bytes(plan.model, plan.train.activation_checkpointing)
    at_once = plan.train.micro_batch_size or plan.train.sequences_per_step(plan.model.context_length)
    needed = fixed + per_sequence * at_once
    free, _ = _memory(best_device())
    parts = f"{_size(fixed)} weights, gradients and moments, the rest for batches of {at_once}"
    found = f"about {_size(needed)} ({parts}), {_size(free)} free"
    if needed <= 0.8 * free:
        return "ok", found
    status: Status = "fail" if needed > free else "warn"
    fits = int((0.8 * free - fixed) // per_sequence)
    if fits >= 1:
        return status, found, f"Use micro_batch_size={fits} or less, or a shorter context_length."
    return status, found, "Even one sequence does not fit: use a smaller model or vocabulary."


def sequence_bytes(config: GPTConfig, activation_checkpointing: bool = False) -> int:
    """What training keeps in memory for one sequence, in bytes: an estimate from above, in float32.

    Per position and layer about ten vectors of d_model (norms, q, k, v, residuals) and two or three of d_ff;
    scores only with dropout on attention, without which they are never held; logits and their gradient.
    With activation checkpointing one layer at a time, and the input of every layer.
    """
    feed_forward = 3 if config.activation == "swiglu" else 2
    scores = 3 * config.n_heads * config.context_length if config.attention_dropout else 0
    layer = 10 * config.d_model + feed_forward * config.ff_dim + scores
    layers = layer + config.n_layers * config.d_model if activation_checkpointing else config.n_layers * layer
    per_position = layers + 3 * config.vocab_size
    return 4 * per_position * config.context_length


def _size(count: float) -> str:
    return f"{count / GIB:.1f} GiB" if count >= GIB else f"{count / 2**20:.0f} MiB"


def _optimizer(plan: Plan) -> Finding:
    train = plan.train
    name = "AdamW" if train.optimizer == "adamw" else f"Muon {train.muon_learning_rate:g} and AdamW"
    found = (
        f"{name}, learning_rate {train.learning_rate:g}, betas {train.betas}, decay {train.weight_decay:g}"
    )
    mend = "Usual are 1e-4 (large models) to 5e-3 (small ones)."
    if train.learning_rate >= 0.05:
        return "fail", f"{found}; steps this large diverge", mend
    if not 1e-5 <= train.learning_rate <= 1e-2:
        return "warn", found, mend
    if train.betas[1] < 0.9 or train.betas[0] > train.betas[1]:
        return "warn", found, "Usual are betas (0.9, 0.95) to (0.9, 0.999)."
    return "ok", found


def _causal_mask(plan: Plan) -> Finding:
    """Change each token in turn: what the model says before it must stay, what it says there must not."""
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
                found = f"changing token {changed} changes what the model says before it"
                return "fail", found, MENDS["causal mask"]
            if float(difference[changed]) == 0:
                found = f"changing token {changed} changes nothing at its own position"
                return "fail", found, MENDS["causal mask"]
    return "ok", f"no position of a tiny model like this one sees a later one ({seq} tried)"


def _checkpoint_folder(plan: Plan) -> Finding:
    folder = _existing(plan.out)
    if plan.out.exists() and not plan.out.is_dir():
        return "fail", f"{plan.out} is a file", MENDS["checkpoints"]
    with tempfile.TemporaryFile(dir=folder) as file:
        file.write(b"labkit")
    return "ok", f"{plan.out} can be written"


CHECKS: dict[str, Callable[[Plan], Finding]] = {
    "Python": _python,
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

MENDS = {
    "packages": "python -m pip install -r requirements.txt",
    "tokenizer": "Run `labkit fetch` again; it renews damaged files.",
    "text": "Name a known corpus, or a file or folder of .txt or .md files in UTF-8.",
    "causal mask": "The attention was changed: it needs is_causal=True, or -inf above the diagonal.",
    "checkpoints": "Name another folder with LABKIT_OUT, or make this one writable.",
}

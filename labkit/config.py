"""Configuration as frozen dataclasses that check themselves: models, training, sampling; and presets."""

from __future__ import annotations

import math
from dataclasses import dataclass, fields
from types import UnionType
from typing import Any, Literal, NoReturn, get_args, get_origin, get_type_hints

Positions = Literal["learned", "sinusoidal", "rotary", "none"]
Norm = Literal["layernorm", "rmsnorm"]
Optimizer = Literal["adamw", "muon"]
Schedule = Literal["cosine", "wsd", "constant"]
Parallel = Literal["ddp", "fsdp"]
Precision = Literal["auto", "fp32", "bf16", "fp16"]
TokenizerName = Literal["char", "bpe", "gpt2"]
Activation = Literal["gelu", "gelu_tanh", "swiglu"]


@dataclass(frozen=True, kw_only=True)
class GPTConfig:
    """The shape of a decoder-only transformer.

    vocab_size and context_length count tokens, d_model and d_ff features.
    Defaults are GPT-2's (Radford et al., 2019); the other choices are those of later models.
    Raises ValueError, naming field, value and what is allowed, for shapes that cannot work.
    """

    vocab_size: int
    """Number of different tokens."""
    context_length: int
    """Longest sequence the model can read, in tokens."""
    d_model: int
    """Features per position."""
    n_layers: int
    """Number of transformer blocks."""
    n_heads: int
    """Attention heads per block; must divide d_model."""
    n_kv_heads: int | None = None
    """Key/value heads (grouped-query attention); as many as n_heads when not given."""
    d_ff: int | None = None
    """Hidden features of the feed-forward network; 4 * d_model when not given."""
    dropout: float = 0.0
    """Dropout on embeddings and on what each block adds to the residual stream."""
    attention_dropout: float = 0.0
    """Dropout on the attention weights."""
    qkv_bias: bool = True
    """Biases on the query, key and value projections."""
    bias: bool = True
    """Biases on every other linear layer of a block, and on layer norms."""
    positions: Positions = "learned"
    """How order enters the model."""
    norm: Norm = "layernorm"
    activation: Activation = "gelu_tanh"
    """gelu is exact; gelu_tanh is GPT-2's approximation; swiglu gates."""
    tie_weights: bool = True
    """Use the token embedding as the output layer."""
    embedding_scale: bool = False
    """Multiply token embeddings by sqrt(d_model), so that sinusoids do not swamp them."""
    norm_eps: float = 1e-5
    rope_base: float = 10000.0
    """Base of the rotary wavelengths."""

    def __post_init__(self) -> None:
        check_types(self)
        at_least(
            self, 1, "vocab_size", "context_length", "d_model", "n_layers", "n_heads", "n_kv_heads", "d_ff"
        )
        for name in ("dropout", "attention_dropout"):
            if not 0 <= getattr(self, name) < 1:
                fail(self, f"{name}={getattr(self, name)} must be in [0, 1).")
        if self.d_model % self.n_heads:
            divisors = ", ".join(str(n) for n in range(1, self.d_model + 1) if self.d_model % n == 0)
            rule = f"n_heads={self.n_heads} does not divide d_model={self.d_model}."
            fail(self, f"{rule} Choose n_heads from {divisors}.")
        if self.n_heads % self.kv_heads:
            fail(self, f"n_kv_heads={self.n_kv_heads} does not divide n_heads={self.n_heads}.")
        if self.positions == "rotary" and self.head_dim % 2:
            rule = f"head_dim={self.head_dim} (d_model / n_heads) must be even"
            fail(self, f"positions='rotary' rotates pairs of features, so {rule}.")
        if self.norm_eps <= 0 or self.rope_base <= 1:
            fail(self, f"norm_eps={self.norm_eps} must be above 0 and rope_base={self.rope_base} above 1.")

    @property
    def head_dim(self) -> int:
        """Features per attention head."""
        return self.d_model // self.n_heads

    @property
    def kv_heads(self) -> int:
        """Number of key/value heads, with the default filled in."""
        return self.n_kv_heads if self.n_kv_heads is not None else self.n_heads

    @property
    def ff_dim(self) -> int:
        """Hidden features of the feed-forward network, with the default filled in."""
        return self.d_ff if self.d_ff is not None else 4 * self.d_model

    @classmethod
    def preset(cls, name: str, **overrides: Any) -> GPTConfig:
        """A named shape, any field of which may be overridden: `GPTConfig.preset("gpt2", n_layers=6)`.

        Raises ValueError for a name that is not in `MODEL_PRESETS`.
        """
        return cls(**look_up(cls.__name__, MODEL_PRESETS, name) | overrides)


@dataclass(frozen=True, kw_only=True)
class TrainConfig:
    """How a model is trained. Give max_steps or epochs, not both; 1,000 steps when neither is given.

    Defaults train `char-mini` on one or two CPU cores in a minute or two.
    Raises ValueError, naming field, value and what is allowed.
    """

    max_steps: int | None = None
    """Number of optimizer steps."""
    epochs: float | None = None
    """Passes over the training tokens (as many random crops as hold that many tokens)."""
    batch_size: int = 12
    """Sequences per step over all devices, each of the model's context length."""
    batch_tokens: int | None = None
    """Tokens per step over all devices, in place of batch_size."""
    micro_batch_size: int | None = None
    """Sequences that one device holds at once; a step sums the gradients of as many passes as it needs."""
    learning_rate: float = 1e-3
    """Peak learning rate, reached at the end of the warmup."""
    min_learning_rate: float | None = None
    """Learning rate at the last step; a tenth of the peak when not given."""
    warmup_steps: int | None = None
    """Steps of linear warmup; a twentieth of all steps, at most 100, when not given."""
    schedule: Schedule = "cosine"
    """After the warmup: cosine; wsd, stable and then a linear decay; or constant."""
    decay_fraction: float = 0.2
    """The part of all steps in which wsd decays."""
    optimizer: Optimizer = "adamw"
    """adamw, or muon: Muon on the blocks' matrices and AdamW on everything else."""
    muon_learning_rate: float = 0.02
    """Peak learning rate of Muon's part; it follows the same schedule."""
    betas: tuple[float, float] = (0.9, 0.99)
    """AdamW's decay rates of the first and second moment."""
    weight_decay: float = 0.1
    """AdamW's decay, applied to matrices only."""
    grad_clip: float = 1.0
    """Largest norm of all gradients together; 0 clips nothing."""
    freeze: tuple[str, ...] = ()
    """Parameters whose names begin so are not trained, for example token_embedding."""
    eval_every: int = 100
    """Steps between evaluations on held-out text; 0 evaluates at the end only."""
    eval_windows: int = 128
    """Held-out windows per evaluation, the same ones each time."""
    sample_every: int = 0
    """Steps between samples; 0 takes none."""
    sample_tokens: int = 120
    """Length of each sample, in tokens."""
    checkpoint_every: int = 0
    """Steps between checkpoints; 0 writes one at the end only."""
    keep_last: int = 2
    """Newest checkpoints to keep; the best one, by held-out loss, is kept beside them."""
    precision: Precision = "auto"
    """What matrices are multiplied in. auto: what the device does fast; weights stay in float32."""
    activation_checkpointing: bool = False
    """Compute each block again in the backward pass: less memory, about a third more time."""
    compile: bool = False
    """Compile the forward and backward pass: a minute at the start, faster steps on a GPU."""
    parallel: Parallel = "ddp"
    """Under torchrun. ddp: every process holds the model; fsdp: its weights are split among them."""
    threads: int | None = None
    """CPU threads; all cores that may be used when not given."""
    seed: int = 0
    """Seeds the data order, dropout and samples."""

    def __post_init__(self) -> None:
        check_types(self)
        betas = self.betas if isinstance(self.betas, tuple) else ()
        if len(betas) != 2 or not all(isinstance(beta, int | float) and 0 <= beta < 1 for beta in betas):
            fail(self, f"betas={self.betas} must be two numbers in [0, 1).")
        if self.max_steps is not None and self.epochs is not None:
            fail(self, f"give max_steps={self.max_steps} or epochs={self.epochs}, not both.")
        at_least(self, 1, "max_steps", "batch_size", "batch_tokens", "micro_batch_size")
        at_least(self, 1, "eval_windows", "sample_tokens", "keep_last", "threads")
        at_least(self, 0, "min_learning_rate", "warmup_steps", "weight_decay", "grad_clip", "seed")
        at_least(self, 0, "eval_every", "sample_every", "checkpoint_every")
        if self.epochs is not None and self.epochs <= 0:
            fail(self, f"epochs={self.epochs} must be above 0.")
        if self.learning_rate <= 0:
            fail(self, f"learning_rate={self.learning_rate} must be above 0 (AdamW: 1e-4 to 5e-3).")
        if self.muon_learning_rate <= 0:
            fail(self, f"muon_learning_rate={self.muon_learning_rate} must be above 0 (usually 0.02).")
        low, peak = self.min_learning_rate, self.learning_rate
        if low is not None and low > peak:
            fail(self, f"min_learning_rate={low} is above learning_rate={peak}.")
        if self.max_steps is not None and (self.warmup_steps or 0) > self.max_steps:
            fail(self, f"warmup_steps={self.warmup_steps} is more than max_steps={self.max_steps}.")
        if not 0 < self.decay_fraction <= 1:
            fail(self, f"decay_fraction={self.decay_fraction} must be in (0, 1].")

    @classmethod
    def preset(cls, name: str, **overrides: Any) -> TrainConfig:
        """A named recipe, any field of which may be overridden: `TrainConfig.preset("fast", seed=1)`.

        Raises ValueError for a name that is not in `TRAIN_PRESETS`.
        """
        return cls(**look_up(cls.__name__, TRAIN_PRESETS, name) | overrides)

    def sequences_per_step(self, context_length: int) -> int:
        """Sequences in one step over all devices.  Raises ValueError for batch_tokens that do not fit."""
        if self.batch_tokens is None:
            return self.batch_size
        if self.batch_tokens % context_length:
            fail(self, f"batch_tokens={self.batch_tokens} is no multiple of context_length={context_length}.")
        return self.batch_tokens // context_length

    def total_steps(self, train_tokens: int, context_length: int) -> int:
        """How many steps this training takes on a text of so many tokens."""
        if self.epochs is not None:
            tokens = self.sequences_per_step(context_length) * context_length
            return math.ceil(self.epochs * train_tokens / tokens)
        return 1000 if self.max_steps is None else self.max_steps


@dataclass(frozen=True, kw_only=True)
class DataConfig:
    """What a model is trained on.  Raises ValueError, naming field, value and what is allowed."""

    corpus: str = "shakespeare"
    """Name in corpus/corpora.toml, a path to your own text, or a folder made by `labkit encode`."""
    tokenizer: TokenizerName = "char"
    """What turns text into tokens; bpe is trained on the corpus (4,096 pieces)."""
    groups: tuple[str, ...] = ()
    """Train only on texts of these groups (comedies, histories, …); on all when not given."""
    val_groups: tuple[str, ...] = ()
    """Hold out only texts of these groups; all held-out texts when not given."""
    max_tokens: int | None = None
    """Train on the first so many tokens only."""
    stride: int | None = None
    """Tokens between windows, each seen once per epoch in shuffled order; random crops when not given."""
    sequences: str | None = None
    """A .pt file of tokenised sequences to train on, in place of a corpus; its last tenth is held out."""

    def __post_init__(self) -> None:
        check_types(self)
        at_least(self, 1, "max_tokens", "stride")
        if self.sequences and (self.groups or self.val_groups or self.stride or self.max_tokens):
            fail(self, "sequences brings its own windows; groups, stride and max_tokens go with a corpus.")


@dataclass(frozen=True, kw_only=True)
class SampleConfig:
    """How text is drawn from a model's predictions. The default draws from the model unchanged.

    The filters work in this order: repetition penalty, temperature, top-k, top-p, min-p.
    Raises ValueError, naming field, value and what is allowed.
    """

    max_new_tokens: int = 200
    """Tokens to generate at most, per prompt."""
    temperature: float = 1.0
    """Below 1 sharpens, above 1 flattens, 0 always takes the likeliest token (greedy)."""
    top_k: int | None = None
    """Keep only the k likeliest tokens."""
    top_p: float | None = None
    """Keep the smallest set of tokens whose probabilities sum to p."""
    min_p: float | None = None
    """Drop tokens that are less likely than this fraction of the likeliest one."""
    repetition_penalty: float = 1.0
    """Above 1 makes tokens that are already in the text less likely; 1 changes nothing."""
    stop: tuple[str, ...] = ()
    """A text ends before the first of these strings that it comes to."""
    eos_id: int | None = None
    """A text ends after this token."""
    n: int = 1
    """Texts to write for each prompt."""

    def __post_init__(self) -> None:
        check_types(self)
        at_least(self, 1, "max_new_tokens", "top_k", "n")
        at_least(self, 0, "temperature", "eos_id")
        if self.top_p is not None and not 0 < self.top_p <= 1:
            fail(self, f"top_p={self.top_p} must be in (0, 1]; 1 keeps everything.")
        if self.min_p is not None and not 0 <= self.min_p <= 1:
            fail(self, f"min_p={self.min_p} must be in [0, 1]; 0 keeps everything.")
        if self.repetition_penalty <= 0:
            fail(self, f"repetition_penalty={self.repetition_penalty} must be above 0; 1 changes nothing.")


def as_dict(config: GPTConfig | TrainConfig | DataConfig | SampleConfig) -> dict[str, Any]:
    """The fields of a configuration as JSON gives them back: tuples are lists."""
    values = {field.name: getattr(config, field.name) for field in fields(config)}
    return {name: list(value) if isinstance(value, tuple) else value for name, value in values.items()}


_GPT2 = {"vocab_size": 50257, "context_length": 1024}

MODEL_PRESETS: dict[str, dict[str, Any]] = {
    # 79: the characters of the plays and the end of a text; with another tokenizer, give its vocab_size.
    "char-mini": {
        "vocab_size": 79,
        "context_length": 64,
        "d_model": 128,
        "n_layers": 4,
        "n_heads": 4,
        "activation": "gelu",  # four times faster on a CPU than GPT-2's approximation of it
    },
    "report": {
        "vocab_size": 50257,
        "context_length": 64,
        "d_model": 128,
        "n_layers": 2,
        "n_heads": 4,
        "attention_dropout": 0.1,
        "tie_weights": False,
    },
    "nano": {
        "vocab_size": 50257,
        "context_length": 256,
        "d_model": 256,
        "n_layers": 6,
        "n_heads": 4,
        "tie_weights": False,
    },
    "gpt2": _GPT2 | {"d_model": 768, "n_layers": 12, "n_heads": 12},
    "gpt2-medium": _GPT2 | {"d_model": 1024, "n_layers": 24, "n_heads": 16},
    "gpt2-large": _GPT2 | {"d_model": 1280, "n_layers": 36, "n_heads": 20},
    "gpt2-xl": _GPT2 | {"d_model": 1600, "n_layers": 48, "n_heads": 25},
    "smollm2-135m": {
        "vocab_size": 49152,
        "context_length": 8192,
        "d_model": 576,
        "n_layers": 30,
        "n_heads": 9,
        "n_kv_heads": 3,
        "d_ff": 1536,
        "qkv_bias": False,
        "bias": False,
        "positions": "rotary",
        "norm": "rmsnorm",
        "activation": "swiglu",
        "rope_base": 100000.0,
    },
}
MODEL_PRESETS["small"] = MODEL_PRESETS["gpt2"]
MODEL_PRESETS["medium"] = MODEL_PRESETS["gpt2-medium"]

TRAIN_PRESETS: dict[str, dict[str, Any]] = {
    # nanoGPT's on a CPU (Karpathy, 2022): what `benchmarks/reference.py` trains with.
    "reference": {
        "max_steps": 2000,
        "batch_size": 12,
        "learning_rate": 1e-3,
        "betas": (0.9, 0.99),
        "weight_decay": 0.1,
        "warmup_steps": 100,
        "schedule": "cosine",
    },
    # With rotary positions it ends as low in a fraction of the time, with learned ones it takes about 600
    # steps to: `benchmarks/time_to_loss.py`.
    "fast": {
        "max_steps": 400,
        "batch_size": 12,
        "optimizer": "muon",
        "muon_learning_rate": 0.03,
        "learning_rate": 1.2e-2,
        "min_learning_rate": 0.0,
        "betas": (0.9, 0.95),
        "weight_decay": 0.1,
        "schedule": "wsd",
        "decay_fraction": 1.0,  # linear from the peak to nothing
    },
}


def look_up(owner: str, presets: dict[str, dict[str, Any]], name: str) -> dict[str, Any]:
    """The arguments of a preset.  Raises ValueError, listing the known ones, for a name without one."""
    if name not in presets:
        raise ValueError(f"{owner}.preset: {name!r} is not known. Choose from {', '.join(presets)}.")
    return presets[name]


def fail(config: object, message: str) -> NoReturn:
    """Raise ValueError with the configuration's name before the message."""
    raise ValueError(f"{type(config).__name__}: {message}")


_KINDS: dict[Any, tuple[Any, str]] = {
    bool: (bool, "True or False"),
    int: (int, "a whole number"),
    float: (int | float, "a number"),
    str: (str, "text"),
}


def check_types(config: Any) -> None:
    """Reject a field whose value is not of its declared kind (a float where an int is needed, say)."""
    for name, hint in get_type_hints(type(config)).items():
        value = getattr(config, name)
        if get_origin(hint) is UnionType:
            if value is None:
                continue
            hint = get_args(hint)[0]
        if get_origin(hint) is Literal and value not in get_args(hint):
            fail(config, f"{name}={value!r} is not known. Choose from {', '.join(get_args(hint))}.")
        if get_origin(hint) is tuple and isinstance(value, list):  # as JSON gives it back
            value = tuple(value)
            object.__setattr__(config, name, value)
        if hint == tuple[str, ...]:
            if not isinstance(value, tuple):
                fail(config, f"{name}={value!r} must be a list of texts.")
            if wrong := [each for each in value if not isinstance(each, str) or not each]:
                fail(config, f"{name}: {wrong[0]!r} must be a text that is not empty.")
        if hint in _KINDS:
            types, words = _KINDS[hint]
            if not isinstance(value, types) or (isinstance(value, bool) and hint is not bool):
                fail(config, f"{name}={value!r} must be {words}.")
            if hint is float and not math.isfinite(value):
                fail(config, f"{name}={value} must be finite.")


def at_least(config: Any, low: float, *names: str) -> None:
    """Reject values below `low`; None passes."""
    for name in names:
        value = getattr(config, name)
        if value is not None and value < low:
            fail(config, f"{name}={value} must be at least {low}.")

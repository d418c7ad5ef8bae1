"""Configuration of models, training and sampling: frozen dataclasses that check themselves."""

from __future__ import annotations

import math
from dataclasses import dataclass, fields
from types import UnionType
from typing import Any, Literal, get_args, get_origin, get_type_hints

from labkit.presets import MODEL_PRESETS

Positions = Literal["learned", "sinusoidal", "rotary", "none"]
Norm = Literal["layernorm", "rmsnorm"]
Optimizer = Literal["adamw", "muon"]
Activation = Literal["gelu", "gelu_tanh", "swiglu"]


def _fail(config: object, message: str) -> None:
    raise ValueError(f"{type(config).__name__}: {message}")


def _check_types(config: Any) -> None:
    """Reject a field whose value is not of its declared kind (a float where an int is needed, say)."""
    for name, hint in get_type_hints(type(config)).items():
        value = getattr(config, name)
        if get_origin(hint) is Literal:
            if value not in get_args(hint):
                _fail(config, f"{name}={value!r} is not known. Choose from {', '.join(get_args(hint))}.")
        elif get_origin(hint) is UnionType:
            if value is not None:
                _check_number(config, name, value, get_args(hint)[0])
        else:
            _check_number(config, name, value, hint)


def _check_number(config: Any, name: str, value: Any, kind: type) -> None:
    if kind is bool and not isinstance(value, bool):
        _fail(config, f"{name}={value!r} must be True or False.")
    if kind is int and (isinstance(value, bool) or not isinstance(value, int)):
        _fail(config, f"{name}={value!r} must be a whole number.")
    if kind is float:
        if isinstance(value, bool) or not isinstance(value, int | float):
            _fail(config, f"{name}={value!r} must be a number.")
        if not math.isfinite(value):
            _fail(config, f"{name}={value} must be finite.")


def _at_least(config: Any, low: float, *names: str) -> None:
    for name in names:
        value = getattr(config, name)
        if value is not None and value < low:
            _fail(config, f"{name}={value} must be at least {low}.")


def _fraction(config: Any, *names: str) -> None:
    for name in names:
        value = getattr(config, name)
        if not 0 <= value < 1:
            _fail(config, f"{name}={value} must be in [0, 1).")


def _unknown_preset(kind: str, name: str, known: dict[str, Any]) -> ValueError:
    return ValueError(f"{kind}.preset: {name!r} is not known. Choose from {', '.join(known)}.")


@dataclass(frozen=True, kw_only=True)
class GPTConfig:
    """The shape of a decoder-only transformer.

    Sizes count units: vocab_size and context_length in tokens, d_model and d_ff in features.
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
        _check_types(self)
        _at_least(
            self, 1, "vocab_size", "context_length", "d_model", "n_layers", "n_heads", "n_kv_heads", "d_ff"
        )
        _fraction(self, "dropout", "attention_dropout")
        if self.d_model % self.n_heads:
            divisors = [n for n in range(1, self.d_model + 1) if self.d_model % n == 0]
            _fail(
                self,
                f"n_heads={self.n_heads} does not divide d_model={self.d_model}. "
                f"Choose n_heads from {', '.join(map(str, divisors))}.",
            )
        if self.n_heads % self.kv_heads:
            _fail(self, f"n_kv_heads={self.n_kv_heads} does not divide n_heads={self.n_heads}.")
        if self.positions == "rotary" and self.head_dim % 2:
            _fail(
                self,
                f"positions='rotary' turns pairs of features, so head_dim={self.head_dim} "
                "(d_model / n_heads) must be even.",
            )
        if self.norm_eps <= 0 or self.rope_base <= 1:
            _fail(self, f"norm_eps={self.norm_eps} must be above 0 and rope_base={self.rope_base} above 1.")

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
        if name not in MODEL_PRESETS:
            raise _unknown_preset(cls.__name__, name, MODEL_PRESETS)
        return cls(**MODEL_PRESETS[name] | overrides)


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
    """Sequences per step, each of the model's context length."""
    learning_rate: float = 1e-3
    """Peak learning rate, reached at the end of the warmup."""
    min_learning_rate: float | None = None
    """Learning rate at the last step; a tenth of the peak when not given."""
    warmup_steps: int | None = None
    """Steps of linear warmup; a twentieth of all steps, at most 100, when not given."""
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
    threads: int | None = None
    """CPU threads; PyTorch's choice when not given."""
    seed: int = 0
    """Seeds the data order, dropout and samples."""

    def __post_init__(self) -> None:
        _check_types(self)
        if self.max_steps is not None and self.epochs is not None:
            _fail(self, f"give max_steps={self.max_steps} or epochs={self.epochs}, not both.")
        _at_least(self, 1, "max_steps", "batch_size", "eval_windows", "sample_tokens", "threads")
        _at_least(self, 0, "min_learning_rate", "warmup_steps", "weight_decay", "grad_clip", "seed")
        _at_least(self, 0, "eval_every", "sample_every", "checkpoint_every")
        if self.epochs is not None and self.epochs <= 0:
            _fail(self, f"epochs={self.epochs} must be above 0.")
        if self.learning_rate <= 0:
            _fail(self, f"learning_rate={self.learning_rate} must be above 0 (AdamW: 1e-4 to 5e-3).")
        if self.muon_learning_rate <= 0:
            _fail(self, f"muon_learning_rate={self.muon_learning_rate} must be above 0 (usually 0.02).")
        if self.min_learning_rate is not None and self.min_learning_rate > self.learning_rate:
            _fail(
                self,
                f"min_learning_rate={self.min_learning_rate} is above learning_rate={self.learning_rate}.",
            )
        if isinstance(self.betas, list):  # as JSON gives them back
            object.__setattr__(self, "betas", tuple(self.betas))
        if not (
            isinstance(self.betas, tuple)
            and len(self.betas) == 2
            and all(isinstance(beta, int | float) and 0 <= beta < 1 for beta in self.betas)
        ):
            _fail(self, f"betas={self.betas} must be two numbers in [0, 1).")
        if self.max_steps is not None and (self.warmup_steps or 0) > self.max_steps:
            _fail(self, f"warmup_steps={self.warmup_steps} is more than max_steps={self.max_steps}.")

    def total_steps(self, train_tokens: int, context_length: int) -> int:
        """How many steps this training takes on a text of so many tokens."""
        if self.epochs is not None:
            return math.ceil(self.epochs * train_tokens / (self.batch_size * context_length))
        return 1000 if self.max_steps is None else self.max_steps


@dataclass(frozen=True, kw_only=True)
class SampleConfig:
    """How text is drawn from a model's predictions. The default draws from the model unchanged.

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
    eos_id: int | None = None
    """A row ends after this token."""

    def __post_init__(self) -> None:
        _check_types(self)
        _at_least(self, 1, "max_new_tokens", "top_k")
        _at_least(self, 0, "temperature", "eos_id")
        if self.top_p is not None and not 0 < self.top_p <= 1:
            _fail(self, f"top_p={self.top_p} must be in (0, 1].")


def as_dict(config: GPTConfig | TrainConfig | SampleConfig) -> dict[str, Any]:
    """The fields of a configuration, ready for JSON."""
    return {field.name: getattr(config, field.name) for field in fields(config)}

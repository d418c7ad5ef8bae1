"""Measuring models and the text they write, and counting what training costs."""

from labkit.analysis.attention import (
    AttentionSteps,
    attention_maps,
    attention_steps,
    head_scores,
    queries_and_keys,
    repeated_ids,
)
from labkit.analysis.compare import Comparison, compare_models
from labkit.analysis.costs import (
    DEVICES,
    TrainingPlan,
    intensity,
    largest_batch,
    mfu,
    parameter_count,
    plan,
    roofline,
    training_flops,
    training_memory,
)
from labkit.analysis.documents import DocumentScore, evaluate_documents, sliding_losses, total_score
from labkit.analysis.embeddings import EmbeddingMap, embedding_map, nearest_tokens
from labkit.analysis.evaluate import (
    bits_per_byte,
    distinct_n,
    entropy,
    evaluate_loss,
    perplexity,
    token_losses,
)
from labkit.analysis.layers import LayerWatch, watch_layers
from labkit.analysis.lens import logit_lens
from labkit.analysis.scaling import (
    PUBLISHED,
    ScalingLaw,
    bootstrap_scaling_law,
    fit_scaling_law,
    intervals,
)

__all__ = [
    "DEVICES",
    "PUBLISHED",
    "AttentionSteps",
    "Comparison",
    "DocumentScore",
    "EmbeddingMap",
    "LayerWatch",
    "ScalingLaw",
    "TrainingPlan",
    "attention_maps",
    "attention_steps",
    "bits_per_byte",
    "bootstrap_scaling_law",
    "compare_models",
    "distinct_n",
    "embedding_map",
    "entropy",
    "evaluate_documents",
    "evaluate_loss",
    "fit_scaling_law",
    "head_scores",
    "intensity",
    "intervals",
    "largest_batch",
    "logit_lens",
    "mfu",
    "nearest_tokens",
    "parameter_count",
    "perplexity",
    "plan",
    "queries_and_keys",
    "repeated_ids",
    "roofline",
    "sliding_losses",
    "token_losses",
    "total_score",
    "training_flops",
    "training_memory",
    "watch_layers",
]

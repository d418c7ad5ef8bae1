"""What a model would predict if it stopped after fewer blocks."""

from __future__ import annotations

import torch
from torch import Tensor

from labkit.analysis.hooks import module_inputs
from labkit.model import GPT


def logit_lens(model: GPT, ids: Tensor) -> Tensor:
    """Logits read from the residual stream before the first block and after each, by the last norm and head.

    ids: (batch, seq).  Returns (layers + 1, batch, seq, vocab): entry 0 sees embeddings only, the last is
    what the model says.  That is a lot of numbers for a large vocabulary; give few tokens then.
    The blocks were not trained to be read in the middle: what shows is real, what does not may be there in
    another form.
    Raises ValueError for ids that are empty or that the model cannot read.
    Source: nostalgebraist (2020), "interpreting GPT: the logit lens".
    """
    streams = module_inputs(model, ids, [*model.blocks, model.norm])  # layers + 1 of (batch, seq, d_model)
    with torch.no_grad():
        return torch.stack([model.head(model.norm(stream)) for stream in streams])

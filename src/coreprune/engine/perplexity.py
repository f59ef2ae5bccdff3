"""How well a causal language model foretells a text: the perplexity of its tokens."""

from __future__ import annotations

import inspect
import math
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy

from coreprune.errors import InvalidInputError
from coreprune.model.untouched import evaluating

__all__ = ["perplexity"]


@torch.no_grad()
def perplexity(model: nn.Module, ids: Tensor, *, together: int = 512) -> float:
    """Exp of the mean cross-entropy of every token but the first of a sequence, given those before it.

    Args:
        model: a causal language model of `transformers`; in whatever mode it is.
        ids: (sequences, length) indices, at least two tokens long.
        together: tokens that are run at a time.

    Raises:
        InvalidInputError: no token has one before it.
    """
    if ids.dim() != 2 or ids.shape[1] < 2 or not len(ids):
        raise InvalidInputError(f"tokens of shape {tuple(ids.shape)} were given: give sequences of two tokens or more")
    parameters: Any = inspect.signature(model.forward).parameters
    more = {"use_cache": False} if "use_cache" in parameters else {}
    device, total = next(model.parameters()).device, 0.0
    with evaluating(model):
        for part in ids.split(max(1, together // ids.shape[1])):
            scores = model(input_ids=part.to(device), **more).logits[:, :-1].float()
            total += float(cross_entropy(scores.flatten(0, 1), part[:, 1:].flatten().to(device), reduction="sum"))
    return math.exp(min(total / (len(ids) * (ids.shape[1] - 1)), 700.0))

"""Which prior a captured network gets where none is asked for, and why."""

from __future__ import annotations

import math
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.utils import _pytree as pytree
from torch.utils.flop_counter import FlopCounterMode

from coreprune.engine.inputs import least_operations, with_tokens
from coreprune.engine.norms import normed
from coreprune.engine.probes import batch_size, on_meta, token_tables
from coreprune.errors import InvalidInputError
from coreprune.model.capture import Captured
from coreprune.priors.gaussian import Gaussian
from coreprune.priors.generated import Generated, writes
from coreprune.priors.matched import Matched, matches
from coreprune.priors.text import Text, places, reads

__all__ = ["Picked", "automatic", "picked"]

#: tokens of a sequence for causal language models, whose later tokens have the longer context
WINDOW = 128
#: floating operations that matching images may cost where nobody asked for it, two minutes of one core, and what
#: an entry that a node writes counts as: between 110 and 400, measured on one core for nine networks
AFFORDABLE, ENTRY = 2.5e13, 256


def automatic(model: nn.Module, captured: Captured) -> Gaussian | Generated | Text | Matched:
    """The prior for a network, where none is asked for.

    A network that reads tokens gets the generic text, if a tokenizer lies beside its weights; a causal language model
    without one writes its own; images are matched to BatchNorm statistics where that costs at most AFFORDABLE;
    all else gets noise.
    """
    return picked(model, captured).prior


class Picked(NamedTuple):
    """A prior that was picked by itself.

    Attributes:
        prior: see `automatic`.
        reason: why, as a clause that goes on from "picked because".
    """

    prior: Gaussian | Generated | Text | Matched
    reason: str


def picked(model: nn.Module, captured: Captured) -> Picked:
    """What `automatic` picks, and why."""
    if captured.path:
        return Picked(Gaussian(), "blocks are captured one by one, and run on what the example brought to them")
    if token_tables(captured):
        return _for_tokens(model, captured)
    leaves = pytree.tree_leaves(captured.arguments)
    if not any(isinstance(v, Tensor) and v.is_floating_point() for v in leaves):
        return Picked(Gaussian(), "it reads neither images nor tokens of a table")
    if not (normed(captured) and matches(model)):
        return Picked(Gaussian(), "nothing in the network remembers its inputs, as a BatchNorm or a tokenizer would")
    images = Matched()
    most = AFFORDABLE * max(batch_size(captured), 1) / (3 * images.count * images.steps)
    if least_operations(captured) <= most and _operations(captured) + ENTRY * _entries(captured) <= most:
        return Picked(images, "its BatchNorms remember the mean and the variance of every channel")
    return Picked(Gaussian(), "matching images to its BatchNorms is not known to be cheap enough")


def _for_tokens(model: nn.Module, captured: Captured) -> Picked:
    """`picked` for a network that reads tokens."""
    prior: Generated | Text
    if reads(model):
        prior = Text(length=WINDOW) if writes(model) else Text()
        reason = "it reads tokens, and a tokenizer lies beside its weights"
    elif writes(model):
        prior, reason = Generated(), "it can write text, and no tokenizer lies beside its weights to read one"
    else:
        return Picked(Gaussian(), "it reads tokens, but no tokenizer lies beside its weights and it writes no text")
    if _follow(captured, prior, model):
        return Picked(prior, reason)
    return Picked(Gaussian(), "it reads tokens, but text cannot take the place of those of the example")


def _follow(captured: Captured, prior: Generated | Text, model: nn.Module) -> bool:
    """Whether text can be put in the place of the example's tokens."""
    try:
        rows = torch.zeros(batch_size(captured) + 1, min(prior.length, places(model)), dtype=torch.int64)
        with_tokens(captured, rows if isinstance(prior, Generated) else prior.draw(model)[: len(rows)])
    except InvalidInputError:
        return False
    return True


def _entries(captured: Captured) -> int:
    """Numbers that the nodes of one forward pass on the example give."""
    values = [node.meta.get("val") for node in captured.graph.graph.nodes if node.op == "call_function"]
    return sum(v.numel() for value in values for v in pytree.tree_leaves(value) if isinstance(v, Tensor))


def _operations(captured: Captured) -> float:
    """Floating operations of one forward pass on the example."""

    def shape(value: Any) -> Any:
        return torch.empty_like(value, device="meta") if isinstance(value, Tensor) else value

    with FlopCounterMode(display=False) as counter:
        outputs = on_meta(captured, pytree.tree_map(shape, captured.arguments))
    return math.inf if outputs is None else float(counter.get_total_flops())

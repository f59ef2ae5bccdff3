"""A captured network whose LayerNorms and RMSNorms get N(0, 1) in the place of what they would get.

It is how `coreprune.priors.normlayer` is drawn: norms divide by the length, so that every direction is as likely as
another, and multiply by their own γ.
"""

from __future__ import annotations

import copy
import math
from collections.abc import Callable, Iterator
from dataclasses import replace

import torch
from torch import Tensor, fx

from coreprune.engine.probes import batch_size
from coreprune.errors import InvalidInputError
from coreprune.model.capture import Captured

__all__ = ["imposed", "vectors"]

_FUSED = {"layer_norm", "native_layer_norm", "rms_norm", "_fused_rms_norm"}
#: what may come between the steps of a norm that is written out
_BETWEEN = {"to", "_to_copy", "type_as", "alias"}


def imposed(captured: Captured, seed: int) -> Captured:
    """The same with what is normalised drawn from N(0, 1), anew in every run; norms of one value get the same.

    Nodes keep their names, so that what is seen at them is seen as before.

    Args:
        captured: not changed. seed: of all that is drawn.

    Raises:
        InvalidInputError: there is no such norm.
    """
    graph = copy.deepcopy(captured.graph.graph)
    found = list(_norms(graph))
    if not found:
        raise InvalidInputError("the network has no LayerNorm or RMSNorm: give another prior, such as 'noise'")
    draw, drawn = _drawing(seed), dict[fx.Node, fx.Node]()
    for value, users in found:
        if value not in drawn:
            with graph.inserting_after(value):
                drawn[value] = graph.create_node("call_function", draw, (value,), name=f"{value.name}_drawn")
            drawn[value].meta["val"] = value.meta["val"]
        for user in users:
            user.replace_input_with(value, drawn[value])
    return replace(captured, graph=fx.GraphModule(captured.graph, graph))


def vectors(captured: Captured) -> int:
    """How many vectors each norm gives for one input, where that is fewest; 1 if there is no norm."""
    counts = []
    for value, users in _norms(captured.graph.graph):
        shape = tuple(value.meta["val"].shape)
        axes = len(users[0].args[1]) if _named(users[0]) in _FUSED else 1  # type: ignore[arg-type]
        counts.append(math.prod(shape[:-axes]) // max(batch_size(captured), 1))
    return max(min(counts, default=1), 1)


def _drawing(seed: int) -> Callable[[Tensor], Tensor]:
    generator = torch.Generator().manual_seed(seed)

    def drawn(value: Tensor) -> Tensor:
        """N(0, 1) of the shape of a value."""
        if value.is_meta:
            return torch.empty_like(value)
        return torch.randn(value.shape, generator=generator).to(value.device, value.dtype)

    return drawn


def _norms(graph: fx.Graph) -> Iterator[tuple[fx.Node, list[fx.Node]]]:
    """What each norm over the last axes normalises, and the nodes that take it in."""
    for node in list(graph.nodes):
        if _named(node) in _FUSED and isinstance(node.args[0], fx.Node):
            yield node.args[0], [node]
        elif _named(node) == "rsqrt":
            square = _square(node)
            if square is not None:
                value = square.args[0]
                assert isinstance(value, fx.Node)
                scaled = [n for n in value.users if _named(n) == "mul" and any(_behind(a) is node for a in n.args)]
                if scaled:
                    yield value, [square, *scaled]


def _square(root: fx.Node) -> fx.Node | None:
    """The node of x² where a node is 1/√(mean of x² over the last axis + ε); else None."""
    total = _behind(root.args[0])
    if total is not None and _named(total) == "add" and not isinstance(total.args[1], fx.Node):
        total = _behind(total.args[0])
    if total is None or _named(total) != "mean" or len(total.args) < 2:
        return None
    square = _behind(total.args[0])
    if square is None or not isinstance(square.args[0], fx.Node):
        return None
    last = square.meta["val"].dim() - 1
    same = _named(square) == "mul" and square.args[0] is square.args[1]
    whole = _named(square) == "square" or (_named(square) == "pow" and square.args[1] == 2) or same
    return square if whole and total.args[1] in ([-1], [last]) else None


def _behind(value: object) -> fx.Node | None:
    """The node whose values a node hands on."""
    while isinstance(value, fx.Node) and _named(value) in _BETWEEN:
        value = value.args[0]
    return value if isinstance(value, fx.Node) else None


def _named(node: fx.Node) -> str:
    """The operator's name, without what it is an operator of."""
    name = str(node.target).split(".")
    return name[1] if node.op == "call_function" and name[0] == "aten" else ""

"""How often each matrix of a network is applied to one input: its multiply-adds are that many times its entries."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from torch import Tensor, fx
from torch.utils import _pytree as pytree

from coreprune.model.capture import Captured

__all__ = ["positions"]

#: operator → where its weight is among its arguments
_WEIGHT = {"linear": 1, "conv1d": 1, "conv2d": 1, "conv3d": 1, "convolution": 1, "addmm": 2, "mm": 1, "matmul": 1,
           "conv_transpose1d": 1, "conv_transpose2d": 1, "conv_transpose3d": 1, "bmm": 1, "baddbmm": 2}  # fmt: skip
#: operators that hand a weight on
_SAME = {"t", "transpose", "permute", "view", "reshape", "to", "_to_copy", "clone", "contiguous", "detach", "alias",
         "unsqueeze", "expand", "select", "numpy_T"}  # fmt: skip


def positions(graphs: Iterable[Captured]) -> dict[str, float]:
    """Tensor → positions of one input that it is applied at: pixels of a convolution's output, tokens of a sequence.

    A tensor that is looked up and not multiplied, such as an embedding, is not named, nor one that no graph applies.
    A block that was captured on its own counts for the inputs it was captured with.
    """
    found: dict[str, float] = {}
    for captured in graphs:
        leaves = pytree.tree_leaves(captured.arguments)
        batch = next((int(v.shape[0]) for v in leaves if isinstance(v, Tensor) and v.dim()), 1)
        for node in (n for part in _parts(captured.graph) for n in part.graph.nodes):
            name, count = _applied(node)
            state = captured.states.get(name, "")
            if state:
                found[state] = found.get(state, 0.0) + count / max(batch, 1)
    return found


def _parts(graph: fx.GraphModule) -> list[fx.GraphModule]:
    return [part for part in graph.modules() if isinstance(part, fx.GraphModule)]


def _applied(node: fx.Node) -> tuple[str, float]:
    """The placeholder that a product's weight comes from, and how many rows it is applied to; nothing otherwise."""
    operator = str(node.target).split(".")[1] if str(node.target).startswith("aten.") else ""
    at = _WEIGHT.get(operator)
    if at is None or len(node.args) <= at:
        return "", 0.0
    weight: Any = node.args[at]
    while isinstance(weight, fx.Node) and weight.op == "call_function" and weight.args:
        if str(weight.target).partition(".")[2].split(".")[0] not in _SAME:
            return "", 0.0
        weight = weight.args[0]
    whole = node.args[0] if "transpose" in operator else node
    value = whole.meta.get("val") if isinstance(whole, fx.Node) else None
    if not isinstance(weight, fx.Node) or weight.op != "placeholder":
        return "", 0.0
    if not isinstance(value, Tensor) or value.dim() < 2:
        return "", 0.0
    axis = 1 if "conv" in operator else -1
    return weight.name, value.numel() / max(int(value.shape[axis]), 1)

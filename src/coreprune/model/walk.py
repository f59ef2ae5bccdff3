"""One pass over a captured graph: labels flow, and every linear map that reads units is written down."""

from __future__ import annotations

import operator
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, replace
from typing import Any

from torch import Tensor, fx
from torch.utils import _pytree as pytree

from coreprune.model.axes import Block, Ids, Labels, Value, joined, trimmed

__all__ = ["Read", "Walk", "kept", "norm_behind", "shape_of", "trace"]


@dataclass(frozen=True)
class Read:
    """A contraction of an axis of units with an axis of a parameter.

    Attributes:
        graph: number of the graph. node: the node in it, by name.
        operand: the node that gives the units.
        axis: theirs, in its value.
        ids: labels along it, (K,).
        source: the parameter.
        weight: labels of the parameter's axis that meets them, position by position, (K,).
        outputs: labels of the parameter's axis that runs over the outputs; empty if there is none.
        bias: the parameter or buffer that takes up a constant, and the sign; None if nothing does exactly.
        what: "linear", "conv", "deconv", "matmul", …
    """

    graph: int
    node: str
    operand: str
    axis: int
    ids: Ids
    source: str
    weight: Ids
    outputs: Ids
    bias: tuple[str, float] | None
    what: str


@dataclass
class Walk:
    """State of the pass.

    Attributes:
        labels: every label, coupled and pinned as far as the pass has come.
        axes: labels of every parameter's axes, by name.
        reads: in forward order.
        attended: labels that met attention scores.
        gated: labels of two branches that were multiplied.
        uses: of every parameter and buffer the nodes that compute with it, as (graph, node).
        values: what is known of each node of the graph at hand.
        graph: its number. depth: how many graphs it lies within.
    """

    labels: Labels = field(default_factory=Labels)
    axes: dict[str, tuple[Ids, ...]] = field(default_factory=dict)
    reads: list[Read] = field(default_factory=list)
    attended: list[Ids] = field(default_factory=list)
    gated: list[Ids] = field(default_factory=list)
    uses: dict[str, set[tuple[int, str]]] = field(default_factory=dict)
    values: dict[str, Any] = field(default_factory=dict)
    graph: int = 0
    depth: int = 0

    def parameter(self, name: str, shape: tuple[int, ...]) -> Value:
        """A parameter or buffer, with labels of its own on every axis."""
        if name not in self.axes:
            self.axes[name] = tuple(self.labels.fresh(size) for size in shape)
        blocks = tuple(Block((a,), ids) for a, ids in enumerate(self.axes[name]) if ids.size > 1)
        return Value(shape, blocks, name)

    def freeze(self, values: Iterable[Any], reason: str) -> None:
        """Hold every unit in these values fast."""
        for value in values:
            if isinstance(value, Value):
                for block in value.blocks:
                    self.labels.freeze(block.ids, reason)

    def pin(self, value: Value, axes: Iterable[int], reason: str) -> None:
        """Hold axes fast: see `Labels.pin`."""
        for axis in axes:
            block = value.at(axis)
            if block is not None:
                self.labels.pin(block, axis % len(value.shape), reason)

    def drop(self, value: Value, axes: Iterable[int], reason: str, *, keepdim: bool = False) -> Value:
        """Pin axes and take them away, as a sum over them does."""
        gone = {axis % max(len(value.shape), 1) for axis in axes} if value.shape else set()
        blocks: list[Block] = []
        where: dict[int, int] = {}
        shape: list[int] = []
        for axis, size in enumerate(value.shape):
            if axis not in gone or keepdim:
                where[axis] = len(shape)
                shape.append(1 if axis in gone else size)
        for block in value.blocks:
            rest: Block | None = block
            for axis in block.axes:
                if axis in gone and rest is not None:
                    self.labels.pin(rest, axis, reason)
                    rest = rest.without(axis)
            if rest is not None:
                blocks.append(rest.moved(where))
        return Value(tuple(shape), tuple(blocks))

    def consumed(self, value: Value, axes: Iterable[int]) -> Value:
        """The value after a contraction over axes that was written down: they are left with one entry each."""
        gone = {axis % len(value.shape) for axis in axes}
        rest = tuple(block for block in value.blocks if not (len(block.axes) == 1 and block.axes[0] in gone))
        return self.drop(replace(value, blocks=rest), gone, "is read along one of its axes", keepdim=True)

    def elementwise(self, shape: tuple[int, ...], values: Iterable[Any]) -> Value:
        """Position by position, with broadcasting."""
        operands = []
        for value in values:
            if isinstance(value, Value):
                shift = len(shape) - len(value.shape)
                sizes = enumerate(value.shape)
                operands.append((value, {a: a + shift for a, size in sizes if size == shape[a + shift]}))
        return Value(shape, joined(self.labels, shape, operands))

    def renewed(self, value: Value) -> Value:
        """The same units with labels of their own: entries that share a label are different numbers from here on."""
        blocks = []
        for block in value.blocks:
            ids = self.labels.fresh(block.ids.size).reshape(block.ids.shape)
            self.labels.couple(block.ids, ids)
            blocks.append(Block(block.axes, ids))
        return replace(value, blocks=tuple(blocks))

    def contract(
        self,
        x: Value,
        axis: int,
        w: Value,
        w_axis: int,
        node: fx.Node,
        what: str,
        outputs: int | None,
        bias: tuple[str, float] | None = None,
    ) -> None:
        """An inner product of an axis of x with one of w: a read, if w is a parameter."""
        axis, w_axis = axis % len(x.shape), w_axis % len(w.shape)
        left, right = x.at(axis), w.at(w_axis)
        if w.source is None:
            reason = "is multiplied with another activation or with computed weights"
            for block, a in ((left, axis), (right, w_axis)):
                if block is not None:
                    self.labels.pin(block, a, reason)
                    self.attended.append(block.ids)
        elif self.depth:
            self.freeze([x, w], "is read within an inner graph")
        elif len(self.axes[w.source]) < 2:
            self.freeze([w], "is a vector that reads units")
            self.pin(x, [axis], "is read by a vector")
        elif right is None:
            self.pin(x, [axis], "is read by a part of a parameter")
        elif left is None:
            self.labels.freeze(right.ids, "reads what is not cut")
        elif len(left.axes) > 1 or len(right.axes) > 1:
            self.labels.pin(left, axis, "is read along one of its axes")
            self.labels.freeze(right.ids, "reads one axis of several")
        else:
            self.labels.couple(left.ids, right.ids)
            out = None if outputs is None else w.at(outputs)
            ids = out.ids.ravel() if out is not None and len(out.axes) == 1 else right.ids[:0]
            operand = next(n.name for n in node.all_input_nodes if self.values.get(n.name) is x)
            self.reads.append(
                Read(self.graph, node.name, operand, axis, left.ids, w.source, right.ids, ids, bias, what)
            )


def shape_of(node: fx.Node) -> Any:
    """Shape of a node's tensor, or a list of shapes, or None."""
    return _shape(node.meta.get("val"))


def norm_behind(node: fx.Node, channel: int) -> fx.Node | None:
    """The BatchNorm that alone uses a node, if its channels (axis 1) are those on axis `channel` of the node."""
    users = list(node.users)
    alone = len(users) == 1 and str(users[0].target).startswith("aten.batch_norm") and users[0].args[0] is node
    return users[0] if alone and channel == 1 else None


def _shape(value: Any) -> Any:
    if isinstance(value, Tensor):
        return tuple(size if isinstance(size, int) else 1 for size in value.shape)
    if isinstance(value, (tuple, list)):
        return [_shape(v) for v in value]
    return None


def kept(blocks: Iterable[Block], where: Mapping[int, int]) -> tuple[Block, ...]:
    """The blocks all of whose axes live on, on their new axes."""
    moved = (trimmed(block.moved(dict(where))) for block in blocks if all(a in where for a in block.axes))
    return tuple(block for block in moved if block is not None)


def trace(graph: fx.Graph, walk: Walk, given: Mapping[str, Value]) -> Any:
    """Carry labels through a graph; `given` holds the values of the placeholders. Returns the output's values."""
    from coreprune.model.rules import RULES

    output: Any = None
    for node in graph.nodes:
        if node.op == "placeholder":
            walk.values[node.name] = given[node.name]
        elif node.op == "output":
            output = fx.map_arg(node.args[0], lambda n: walk.values.get(n.name))
            _note(walk, node, output, None)
        elif node.op == "call_function":
            walk.values[node.name] = result = _call(walk, node, RULES)
            _note(walk, node, [walk.values.get(n.name) for n in node.all_input_nodes], result)
    return output


def _note(walk: Walk, node: fx.Node, given: Any, result: Any) -> None:
    """Write down which parameters a node computes with, and does not only hand on."""
    before, after = (
        {v.source for v in pytree.tree_leaves(values) if isinstance(v, Value) and v.source}
        for values in (given, result)
    )
    for source in before - after:
        walk.uses.setdefault(source, set()).add((walk.graph, node.name))


def _call(walk: Walk, node: fx.Node, rules: Mapping[str, Any]) -> Any:
    args, kwargs = fx.map_arg((list(node.args), dict(node.kwargs)), lambda n: walk.values.get(n.name, n))
    name = str(node.target)
    if node.target is operator.getitem:
        whole = args[0]
        at: Any = args[1]
        return whole[at] if isinstance(whole, (list, tuple)) and at < len(whole) else None
    inner = [a for a in node.args if isinstance(a, fx.Node) and a.op == "get_attr"]
    if inner and name.startswith("wrap_with") and isinstance(inner[0].graph.owning_module, fx.GraphModule):
        body = getattr(inner[0].graph.owning_module, str(inner[0].target))
        if isinstance(body, fx.GraphModule):
            return _inner(walk, body, args[list(node.args).index(inner[0]) + 1 :])
    operation = name.rpartition(".")[0] or name
    rule = rules.get(operation)
    shape = shape_of(node)
    values = [v for v in pytree.tree_leaves((args, kwargs)) if isinstance(v, Value)]
    if _open(node):
        walk.freeze(values, "has as many positions as its values say")
    elif rule is not None and shape is not None and any(v.blocks for v in values):
        return rule(walk, node, args, kwargs)
    elif rule is None and shape is not None and not any(part in name for part in ("aten.new_", "aten.sym_")):
        walk.freeze(values, f"goes through {operation}, for which there is no rule")
    if isinstance(shape, list):
        return [None if one is None else Value(one) for one in shape]
    return None if shape is None else Value(shape)


def _open(node: fx.Node) -> bool:
    """Whether the shape of what a node gives depends on values."""
    tensors = [v for v in pytree.tree_leaves(node.meta.get("val")) if isinstance(v, Tensor)]
    return any(not isinstance(size, int) for tensor in tensors for size in tensor.shape)


def _inner(walk: Walk, body: fx.GraphModule, args: list[Any]) -> Any:
    """A block of the forward pass that the exporter wrote as a graph of its own."""
    names = [node.name for node in body.graph.nodes if node.op == "placeholder"]
    outer, walk.values = walk.values, {}
    walk.depth += 1
    result = trace(body.graph, walk, dict(zip(names, args, strict=False)))
    walk.values = outer
    walk.depth -= 1
    return list(result) if isinstance(result, tuple) else result

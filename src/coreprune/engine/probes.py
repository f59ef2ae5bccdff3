"""Inputs that are drawn in the shape of an example: noise for numbers, any row of the table for indices."""

from __future__ import annotations

from collections.abc import Collection, Iterator, Sequence
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor, fx, nn
from torch.utils import _pytree as pytree

from coreprune.engine.runner import run
from coreprune.errors import InvalidInputError
from coreprune.model.capture import Arguments, Captured, first_line
from coreprune.model.record import Shapes
from coreprune.model.tensors import tensors_of
from coreprune.model.untouched import holding

__all__ = [
    "batch_size",
    "by_shape",
    "crops",
    "fits",
    "fitting",
    "given",
    "halved",
    "keeps_precision",
    "misfit",
    "on_meta",
    "predicting",
    "predicts",
    "synthesise",
    "token_tables",
]

#: side of an image from which a smaller one may stand for it
LARGE = 128

#: operators that hold no width: the shape of what they give follows from the shapes they are given
_BY_SHAPE = {"adaptive_avg_pool1d", "adaptive_avg_pool2d", "adaptive_max_pool2d", "add", "avg_pool1d", "avg_pool2d",
             "batch_norm", "cat", "clone", "conv1d", "conv2d", "conv3d", "dropout", "elu", "flatten", "gelu",
             "hardsigmoid", "hardswish", "hardtanh", "leaky_relu", "linear", "max_pool1d", "max_pool2d", "mean", "mul",
             "relu", "sigmoid", "silu", "tanh"}  # fmt: skip


def batch_size(captured: Captured) -> int:
    """Entries of the example batch: the first axis of the first tensor; 0 if there is no tensor."""
    shapes = [a.shape for a in pytree.tree_leaves(captured.arguments) if isinstance(a, Tensor) and a.dim()]
    return int(shapes[0][0]) if shapes else 0


def fits(captured: Captured, batch: int) -> bool:
    """Whether the graph can be run on batches of another size: tried once, on shapes alone."""
    own = batch_size(captured)
    if batch == own or not own:
        return batch == own
    known: dict[tuple[int, int], bool] = captured.graph.meta.setdefault("batches", {})
    if (own, batch) not in known:
        known[own, batch] = _fits(captured, own, batch)
    return known[own, batch]


def _fits(captured: Captured, own: int, batch: int) -> bool:
    outputs = on_meta(captured, pytree.tree_map(lambda a: _rows(a, own, batch, "meta"), captured.arguments))
    if outputs is None:
        return False
    pairs = zip(outputs, given(captured), strict=True)
    return all(tuple(a.shape) == _shape(b, own, batch) for a, b in pairs if isinstance(a, Tensor))


def given(captured: Captured) -> list[Any]:
    """What a graph gives for its example, tensors without values."""
    output = list(captured.graph.graph.nodes)[-1]
    return pytree.tree_leaves(fx.map_arg(output.args[0], lambda node: node.meta["val"]))


def by_shape(captured: Captured) -> bool:
    """Whether no operator of a graph holds a width or the size of an image: see `_BY_SHAPE`."""
    operators = [str(n.target).split(".") for n in captured.graph.graph.nodes if n.op not in {"placeholder", "output"}]
    return not captured.constants and all(o[0] == "aten" and o[1].rstrip("_") in _BY_SHAPE for o in operators)


def keeps_precision(captured: Captured) -> bool:
    """Whether a graph computes in the precision of what it is given, since none of its operators has one of its own."""
    return by_shape(captured) and not any("dtype" in node.kwargs for node in captured.graph.graph.nodes)


def crops(captured: Captured, parts: Sequence[int] = (4, 2)) -> Iterator[Captured]:
    """The same with smaller images in its example, a quarter and half as high and wide; whether it runs is not known.

    Nothing where there are no images of LARGE pixels or more along an axis.
    """
    leaves = pytree.tree_leaves(captured.arguments)
    images = [a for a in leaves if isinstance(a, Tensor) and a.is_floating_point() and a.dim() > 3]
    if not images or captured.path or max(max(a.shape[2:]) for a in images) < LARGE:
        return
    for part in parts:
        yield replace(captured, arguments=pytree.tree_map(lambda a, part=part: _crop(a, part), captured.arguments))


def halved(captured: Captured, batch: int) -> Captured:
    """The same with large images half as high and wide, where it runs on a batch of them and says as much of each part.

    That is where no operator holds a size, and none makes more positions out of fewer, as adaptive pooling can.
    """
    known: dict[int, Captured] = captured.graph.meta.setdefault("halved", {})
    if batch not in known:
        known[batch] = captured
        less = next(crops(captured, (2,)), None) if by_shape(captured) else None
        if less is not None and not _stretches(captured) and _fits(less, batch_size(captured), batch):
            known[batch] = less
            captured.graph.meta.setdefault("batches", {})[batch_size(captured), batch] = True
    return known[batch]


def _stretches(captured: Captured) -> bool:
    """Whether an adaptive pooling would have to make more positions of half as many."""
    pools = [n for n in captured.graph.graph.nodes if str(n.target).startswith("aten.adaptive_")]
    return any(
        2 * wanted > has
        for node in pools
        for wanted, has in zip(node.args[1], node.args[0].meta["val"].shape[-len(node.args[1]) :], strict=True)
        if wanted > 1
    )


def _crop(value: Any, part: int) -> Any:
    """A tensor of images cut to 1/part of every side, rounded up to a multiple of 32 pixels."""
    if not isinstance(value, Tensor) or not value.is_floating_point() or value.dim() <= 3:
        return value
    for axis in range(2, value.dim()):
        value = value.narrow(axis, 0, min(value.shape[axis], -(-value.shape[axis] // (32 * part)) * 32))
    return value


def on_meta(captured: Captured, inputs: Arguments) -> list[Any] | None:
    """What the graph gives for inputs on the meta device, shapes alone; None where it cannot do with them."""
    held = {captured.states[n.name]: n.meta["val"] for n in captured.graph.graph.nodes if n.name in captured.states}
    tensors = {name: torch.empty(tuple(v.shape), dtype=v.dtype, device="meta") for name, v in held.items()}
    try:
        return run(captured, tensors, inputs)
    except Exception:  # whatever an operator raises that holds the size of the example
        return None


def misfit(module: nn.Module, captured: Captured) -> str | None:
    """Why a module does not give outputs of the graph's shapes for the example, on shapes alone; None if it does."""
    args, kwargs = _without_values(captured.arguments)
    try:
        with Shapes(), holding(module, {id(t): _without_values(t) for t in tensors_of(module).values()}):
            outputs = module(*args, **kwargs)
    except Exception as error:  # a module raises whatever its code raises, and some need values
        return first_line(error)
    shapes = [
        [tuple(v.shape) for v in each if isinstance(v, Tensor) and (v.is_floating_point() or v.is_complex())]
        for each in (pytree.tree_leaves(outputs), given(captured))
    ]
    return None if shapes[0] == shapes[1] else f"its outputs have shapes {shapes[0]} in place of {shapes[1]}"


def _without_values(values: Any) -> Any:
    return pytree.tree_map(lambda a: torch.empty_like(a, device="meta") if isinstance(a, Tensor) else a, values)


def _shape(value: Tensor, own: int, batch: int) -> tuple[int, ...]:
    """Shape of a tensor with `batch` entries where it has `own`."""
    shape = tuple(value.shape)
    return (batch, *shape[1:]) if shape[:1] == (own,) else shape


def _rows(value: Any, own: int, batch: int, device: str | torch.device) -> Any:
    """A tensor with `batch` entries where it has `own`, in turn. Without values it is a mask that masks nothing."""
    if not isinstance(value, Tensor):
        return value
    if device == "meta" or value.is_meta:
        return torch.ones(_shape(value, own, batch), dtype=value.dtype, device=device)
    return value[torch.arange(batch, device=value.device) % own] if value.shape[:1] == (own,) != (batch,) else value


def fitting(captured: Captured, call: Arguments) -> Iterator[Arguments]:
    """A call in batches that the graph can be run on: as it is, or cut into batches of the example's size.

    What is left over after the last whole batch is dropped. Keyword arguments of the example that are no tensors,
    such as `use_cache=False`, need not be given again.

    Raises:
        InvalidInputError: it has fewer inputs than the example, or other arguments.
    """
    example = captured.arguments[1]
    given = {name: v for name, v in example.items() if v is None or isinstance(v, (bool, int, float, str))} | call[1]
    call = call[0], {name: given[name] for name in example if name in given} | given
    leaves, spec = pytree.tree_flatten(call)
    if spec != pytree.tree_structure(captured.arguments):
        raise InvalidInputError("the data have other arguments than example_inputs: give both in the same form")
    own = batch_size(captured)
    sizes = {len(leaf) for leaf in leaves if isinstance(leaf, Tensor) and leaf.dim()}
    size = batch_size(replace(captured, arguments=call))
    if size == own or len(sizes) > 1 or fits(captured, size):
        yield call
        return
    if size < own:
        raise InvalidInputError(
            f"the data come in batches of {size} and the network was captured with {own}, which it holds: "
            f"give batches of {own} or more, or example_inputs of {size}"
        )
    for low in range(0, size - own + 1, own):
        part = [leaf[low : low + own] if isinstance(leaf, Tensor) and leaf.dim() else leaf for leaf in leaves]
        yield pytree.tree_unflatten(part, spec)


def synthesise(
    captured: Captured,
    count: int,
    seed: int,
    mean: float | Tensor = 0.0,
    std: float | Tensor = 1.0,
    *,
    batch: int | None = None,
) -> Iterator[Arguments]:
    """Probe inputs: noise in the shape of the example.

    Floating tensors are drawn from N(mean, std²), indices into an embedding evenly from its table. Masks and all
    else stay as in the example.

    Args:
        captured: whose example it is.
        count: how many batches.
        seed: of the generator.
        mean: of floating inputs, and `std` their standard deviation: numbers, or tensors that broadcast against them.
        batch: entries of a batch, if `fits` says that the graph allows it; as in the example without.
    """
    generator = torch.Generator().manual_seed(seed)
    leaves, spec = pytree.tree_flatten(captured.arguments)
    own, named = batch_size(captured), token_tables(captured)
    tables = {id(leaf): named[name] for name, leaf in zip(captured.inputs, leaves, strict=True) if name in named}
    for _ in range(count):
        new: dict[int, Any] = {}  # a tensor that is given twice is one to the exporter
        for leaf in {id(leaf): leaf for leaf in leaves}.values():
            device = "cpu" if isinstance(leaf, Tensor) and leaf.is_meta else getattr(leaf, "device", "cpu")
            value = _rows(leaf, own, batch or own, device)
            if isinstance(value, Tensor) and value.is_floating_point():
                noise = torch.randn(value.shape, generator=generator) * std + mean
                value = noise.to(value.device, value.dtype)
            elif id(leaf) in tables:
                value = torch.randint(tables[id(leaf)], value.shape, generator=generator).to(value.device, value.dtype)
            new[id(leaf)] = value
        yield pytree.tree_unflatten([new[id(leaf)] for leaf in leaves], spec)


#: operators that hand indices on as they are
_SAME = {"view", "reshape", "to", "_to_copy", "clone", "contiguous", "unsqueeze", "squeeze", "expand", "slice",
         "flatten", "detach", "alias", "select", "transpose", "permute", "_unsafe_view", "lift_fresh_copy"}  # fmt: skip


def predicts(output: Tensor, tables: Collection[int]) -> bool:
    """Whether an output predicts tokens: as many numbers, in rows, as a table has that tokens are read from.

    Args:
        output: of the network. tables: the rows of each, see `token_tables`.
    """
    return output.dim() > 1 and output.shape[-1] in tables


def predicting(captured: Captured) -> bool:
    """Whether the first floating output of a graph predicts tokens."""
    floating = (v for v in given(captured) if isinstance(v, Tensor) and v.is_floating_point() and v.dim())
    first = next(floating, None)
    return first is not None and predicts(first, set(token_tables(captured).values()))


def token_tables(captured: Captured) -> dict[str, int]:
    """Inputs that are indices into an embedding → rows of the (smallest) table."""
    found: dict[str, int] = {}
    for node in captured.graph.graph.nodes:
        if not str(node.target).startswith(("aten.embedding.", "aten.embedding_bag.")):
            continue
        table, source = node.args[:2]
        while source.op == "call_function" and str(source.target).split(".")[1] in _SAME:
            source = source.args[0]
        rows = int(table.meta["val"].shape[0])
        if source.name in captured.inputs:
            found[source.name] = min(rows, found.get(source.name, rows))
    return found

"""A forward pass as a graph of ATen operators, written down while the code runs once on shapes.

torch.export traces everything that PyTorch can do, in several passes, and takes a second for a few hundred
operators. Networks of convolutions and plain layers use few functions, and calling one of these is one operator. So the
module itself is run on the meta device, and every call is written down as torch.export would write it. At the first
that is not in the table, whatever else is done to a tensor, and under autocast there is no graph: then it exports.
"""

from __future__ import annotations

import inspect
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from functools import cache
from typing import Any

import torch
from torch import Tensor, fx, nn
from torch.nn import functional as F
from torch.overrides import TorchFunctionMode
from torch.utils import _pytree as pytree

from coreprune.model.shapes import shaped
from coreprune.model.tensors import tensors_of
from coreprune.model.untouched import holding, untouched

__all__ = ["Shapes", "recorded"]

_aten = torch.ops.aten
#: an operator and its arguments, from the arguments of a function
_Call = tuple[Any, tuple[Any, ...]]


class _Unknown(Exception):  # noqa: N818
    """Something that is not in the tables."""


def _either(name: str) -> Callable[..., _Call]:
    """A function of `torch.nn.functional` that works in place where it is asked to."""

    def call(x: Tensor, inplace: bool = False) -> _Call:
        return getattr(_aten, name + "_" * inplace).default, (x,)

    return call


def _batch_norm(
    x: Tensor,
    mean: Tensor | None,
    variance: Tensor | None,
    weight: Tensor | None = None,
    bias: Tensor | None = None,
    training: bool = False,
    momentum: float = 0.1,
    eps: float = 1e-5,
) -> _Call:
    return _aten.batch_norm.default, (x, weight, bias, mean, variance, training, momentum, eps, False)


def _dropout(x: Tensor, p: float = 0.5, training: bool = True, inplace: bool = False) -> _Call:
    return (_aten.dropout_ if inplace else _aten.dropout).default, (x, p, training)


def _hardtanh(x: Tensor, min_val: float = -1.0, max_val: float = 1.0, inplace: bool = False) -> _Call:
    return (_aten.hardtanh_ if inplace else _aten.hardtanh).default, (x, min_val, max_val)


def _relu6(x: Tensor, inplace: bool = False) -> _Call:
    return _hardtanh(x, 0.0, 6.0, inplace)


def _pooled(x: Tensor, *more: Any, return_indices: bool = False, **named: Any) -> _Call:
    if return_indices or (len(more) > 5 and more[5]):
        raise _Unknown
    names = ("kernel_size", "stride", "padding", "dilation", "ceil_mode")
    given = dict(zip(names, more, strict=False)) | named
    defaults = {"stride": None, "padding": 0, "dilation": 1, "ceil_mode": False}
    return _aten.max_pool2d.default, (x, *((defaults | given)[name] for name in names))


def _mean(x: Tensor, dim: Any = None, keepdim: bool = False) -> _Call:
    if dim is None:
        raise _Unknown
    return _aten.mean.dim, (x, [dim] if isinstance(dim, int) else dim, keepdim)


def _adaptive(x: Tensor, output_size: Any) -> _Call:
    sizes = [output_size] * 2 if isinstance(output_size, int) else output_size
    sizes = [own if size is None else size for size, own in zip(sizes, x.shape[-2:], strict=True)]
    return _aten.adaptive_avg_pool2d.default, (x, sizes)


def _sum(x: Any, y: Any, *, alpha: int = 1) -> _Call:
    if not isinstance(x, Tensor) or not isinstance(y, Tensor) or alpha != 1:
        raise _Unknown
    return _aten.add.Tensor, (x, y)


def _product(x: Any, y: Any) -> _Call:
    if not isinstance(x, Tensor) or not isinstance(y, Tensor):
        raise _Unknown
    return _aten.mul.Tensor, (x, y)


def _added(x: Tensor, y: Any, *, alpha: int = 1) -> _Call:
    return _aten.add_.Tensor, _sum(x, y, alpha=alpha)[1]


@cache
def _arguments(operator: Any) -> tuple[Any, ...]:
    """The arguments of an operator's schema, which PyTorch makes anew each time they are asked for."""
    return tuple(operator._schema.arguments)


def _same(operator: Any) -> Callable[..., _Call]:
    """A function whose arguments are its operator's."""

    def call(*args: Any, **kwargs: Any) -> _Call:
        arguments = _arguments(operator)
        names = [argument.name for argument in arguments]
        if not set(kwargs) <= set(names):
            raise _Unknown
        named = dict(zip(names, args, strict=False)) | kwargs
        known = {a.name: named.get(a.name, a.default_value) for a in arguments}
        return operator, tuple(known.values())

    return call


#: function → what it calls
_FUNCTIONS: dict[Any, Callable[..., _Call]] = {
    F.batch_norm: _batch_norm,
    F.dropout: _dropout,
    F.relu6: _relu6,
    F.hardtanh: _hardtanh,
    F.max_pool2d: _pooled,
    torch.max_pool2d: _pooled,
    F.adaptive_avg_pool2d: _adaptive,
    **{getattr(F, name): _either(name) for name in ("relu", "hardswish", "hardsigmoid", "silu")},
    **dict.fromkeys([torch.mean, Tensor.mean], _mean),
    **dict.fromkeys([torch.add, Tensor.add, Tensor.__add__], _sum),
    **dict.fromkeys([Tensor.add_, Tensor.__iadd__], _added),
    **dict.fromkeys([torch.mul, Tensor.mul, Tensor.__mul__], _product),
    **dict.fromkeys([torch.flatten, Tensor.flatten], _same(_aten.flatten.using_ints)),
    **dict.fromkeys([torch.relu, Tensor.relu], _same(_aten.relu.default)),
    **dict.fromkeys([torch.relu_, Tensor.relu_], _same(_aten.relu_.default)),
    **dict.fromkeys([torch.sigmoid, Tensor.sigmoid], _same(_aten.sigmoid.default)),
    **dict.fromkeys([torch.cat, torch.concat], _same(_aten.cat.default)),
    torch.conv2d: _same(_aten.conv2d.default),
    F.linear: _same(_aten.linear.default),
    F.avg_pool2d: _same(_aten.avg_pool2d.default),
}
#: those of them that take many steps on shapes
_QUICK = {F.batch_norm, F.relu, F.silu, F.hardswish, F.hardsigmoid, torch.conv2d, torch.cat, torch.concat}
#: methods that ask a tensor for something that is no tensor, beside its attributes
_ASKING = {Tensor.size, Tensor.dim, Tensor.ndimension, Tensor.numel, Tensor.__len__, Tensor.is_floating_point}
_WEIGHTED = {_aten.conv2d.default, _aten.linear.default}


def recorded(
    model: nn.Module, args: tuple[Any, ...], kwargs: Mapping[str, Any]
) -> tuple[fx.GraphModule, dict[str, str], tuple[str, ...]] | None:
    """The graph of one call, or None where the tables do not suffice.

    Args:
        model: in eval mode; not changed.
        args: tensors. kwargs: tensors.

    Returns:
        The graph, placeholder → name of the parameter or buffer, and the placeholders of the inputs, in order.

    Example:
        >>> with torch.no_grad():
        ...     graph, states, inputs = recorded(nn.Linear(3, 2), (torch.ones(1, 3),), {})
        >>> [str(node.target) for node in graph.graph.nodes if node.op == "call_function"], states["p_weight"]
        (['aten.linear.default'], 'weight')
    """
    own = tensors_of(model)
    leaves = pytree.tree_leaves((args, dict(kwargs)))
    flat = [*args, *kwargs.values()]
    if len(leaves) != len(flat) or not all(isinstance(v, Tensor) and type(v) is Tensor for v in flat):
        return None
    if len({id(v) for v in flat}) < len(flat) or any(type(p) is not nn.Parameter for p in model.parameters()):
        return None
    graph = fx.Graph()
    recorder = _Recorder(graph)
    metas: dict[int, Tensor] = {}
    states: dict[str, str] = {}
    for name, tensor in own.items():
        if id(tensor) not in metas:
            metas[id(tensor)] = torch.empty_like(tensor, device="meta").detach()
            kind = "p" if isinstance(tensor, nn.Parameter) else "b"
            node = recorder.placeholder(f"{kind}_{name.replace('.', '_')}", metas[id(tensor)])
            states[node.name] = name
    given = [torch.empty_like(value, device="meta").detach() for value in flat]
    inputs = [recorder.placeholder(*pair) for pair in zip(_names(model, args, kwargs), given, strict=True)]
    recorder.weights = set(states)
    call = given[: len(args)], dict(zip(kwargs, given[len(args) :], strict=True))
    try:
        with untouched(model), _noting_nothing(model), holding(model, metas), recorder:
            outputs = model(*call[0], **call[1])
        graph.output(tuple(recorder.node(value) for value in pytree.tree_leaves(outputs)))
        return _Uncompiled(nn.Module(), graph), states, tuple(node.name for node in inputs)
    except Exception:  # whatever the code raises: the exporter says what is wrong
        return None


def _names(model: nn.Module, args: Sequence[Any], kwargs: Mapping[str, Any]) -> list[str]:
    """What the arguments are called."""
    known = [p.name for p in inspect.signature(model.forward).parameters.values() if p.kind is p.POSITIONAL_OR_KEYWORD]
    known += [f"args_{i}" for i in range(len(known), len(args))]
    return [*known[: len(args)], *kwargs]


class _Uncompiled(fx.GraphModule):
    """A graph whose nodes are run one by one: Python's code for it is written when it is called."""

    def recompile(self) -> Any:
        """Nothing yet."""
        self._code = ""

    def forward(self, *args: Any) -> Any:
        """What the graph says; the first call puts its code in the place of this one."""
        super().recompile()
        return self(*args)


class _Recorder(TorchFunctionMode):
    """Writes down every call."""

    def __init__(self, graph: fx.Graph) -> None:
        super().__init__()
        self.graph, self.weights = graph, set[str]()
        self._known: dict[int, fx.Node] = {}
        self._alive: list[Tensor] = []  # so that no other tensor gets an id that is known

    def placeholder(self, name: str, value: Tensor) -> fx.Node:
        """A new input of the graph."""
        return self._noted("placeholder", re.sub(r"\W", "_", name), (), re.sub(r"\W", "_", name), value)

    def node(self, value: Any) -> fx.Node:
        """Where a tensor comes from."""
        if not isinstance(value, Tensor) or id(value) not in self._known:
            raise _Unknown
        return self._known[id(value)]

    def _noted(self, kind: str, target: Any, args: tuple[Any, ...], name: str, value: Tensor) -> fx.Node:
        node = self.graph.create_node(kind, target, args, name=name)
        node.meta["val"] = value
        self._known[id(value)] = node
        self._alive.append(value)
        return node

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        """One function of PyTorch."""
        asks = func in _ASKING or getattr(func, "__name__", "") == "__get__"
        casts = torch.is_autocast_enabled("cpu") or torch.is_autocast_enabled("cuda")
        if casts or torch.is_grad_enabled() or not (asks or func in _FUNCTIONS):  # before it does anything
            raise _Unknown
        if asks:
            result = func(*args, **(kwargs or {}))
            if isinstance(result, Tensor):  # a view of its own
                raise _Unknown
            return result
        operator, given = _FUNCTIONS[func](*args, **(kwargs or {}))
        trimmed = tuple(_trimmed(operator, given))
        nodes = tuple(self._nodes(value) for value in trimmed)
        if operator in _WEIGHTED and nodes[1].name not in self.weights:
            raise _Unknown  # a weight that is computed
        result = shaped(operator, trimmed)
        self._noted("call_function", operator, nodes, operator.overloadpacket.__name__, result)
        return result

    def _nodes(self, value: Any) -> Any:
        """An argument with the nodes of its tensors."""
        if isinstance(value, list):
            return [self._nodes(one) for one in value]
        return self.node(value) if isinstance(value, Tensor) else value


class Shapes(TorchFunctionMode):
    """Context in which what networks do most on the meta device gives shapes without PyTorch's many steps.

    Example:
        >>> with torch.no_grad(), Shapes():
        ...     nn.BatchNorm1d(3, device="meta").eval()(torch.empty(2, 3, device="meta")).shape
        torch.Size([2, 3])
    """

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        """One function of PyTorch."""
        kwargs = kwargs or {}
        first = args[0] if args else None
        if isinstance(first, (list, tuple)) and first:  # of values that are joined
            first = first[0]
        if func in _QUICK and isinstance(first, Tensor) and first.is_meta:
            with suppress(_Unknown):
                operator, given = _FUNCTIONS[func](*args, **kwargs)
                return given[0] if operator.overloadpacket.__name__.endswith("_") else shaped(operator, given)
        return func(*args, **kwargs)


def _trimmed(operator: Any, args: Sequence[Any]) -> Iterator[Any]:
    """The arguments as the dispatcher sees them: lists where it has lists, and no default at the end."""
    arguments = _arguments(operator)
    new = []
    for argument, value in zip(arguments, args, strict=False):
        if argument.N and isinstance(value, int):
            value = [value] * argument.N  # noqa: PLW2901
        elif value is None and isinstance(argument.default_value, list):
            value = []  # noqa: PLW2901
        elif isinstance(value, tuple):
            value = list(value)  # noqa: PLW2901
        if isinstance(value, str):  # another overload
            raise _Unknown
        new.append(value)
    while len(new) > 1 and arguments[len(new) - 1].has_default_value():
        default = arguments[len(new) - 1].default_value
        if isinstance(new[-1], Tensor) or new[-1] != (
            [default] * len(new[-1]) if _spread(new[-1], default) else default
        ):
            break
        new.pop()
    yield from new


def _spread(value: Any, default: Any) -> bool:
    return isinstance(value, list) and isinstance(default, int)


@contextmanager
def _noting_nothing(model: nn.Module) -> Iterator[None]:
    """Raise _Unknown if the code sets an attribute of a module: it may keep what it made."""
    before = [(vars(module), dict(vars(module))) for module in model.modules()]
    yield
    if any(now.keys() != held.keys() or any(now[key] is not held[key] for key in held) for now, held in before):
        raise _Unknown

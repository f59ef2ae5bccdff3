"""The forward pass as a graph of ATen operators, without running it and without looking at a weight."""

from __future__ import annotations

import inspect
import warnings
from collections.abc import Callable, Mapping
from dataclasses import dataclass, fields, is_dataclass
from typing import Any, ParamSpec, TypeVar

import torch
from torch import Tensor, fx, nn
from torch.utils import _pytree as pytree

from coreprune.errors import InvalidInputError, UnsupportedModelError
from coreprune.model.quiet import quiet
from coreprune.model.record import recorded
from coreprune.model.untouched import evaluating

__all__ = [
    "Arguments",
    "Captured",
    "arguments",
    "capture",
    "described",
    "first_line",
    "graded",
    "leaves_of",
    "rebuilt",
    "rows_of",
]


P = ParamSpec("P")
T = TypeVar("T")
#: what a network is called with, (args, kwargs)
Arguments = tuple[tuple[Any, ...], dict[str, Any]]


@dataclass(frozen=True)
class Captured:
    """A captured forward pass.

    Attributes:
        path: of the module that was captured, relative to the model; "" for the model itself.
        graph: the operators.
        states: placeholder → name in the model of the parameter or buffer it stands for.
        constants: placeholder → tensor that the code holds.
        inputs: names of the placeholders of the inputs, in the order of the flattened arguments.
        arguments: the example arguments, (args, kwargs).
    """

    path: str
    graph: fx.GraphModule
    states: Mapping[str, str]
    constants: Mapping[str, Tensor]
    inputs: tuple[str, ...]
    arguments: Arguments

    def feed(self, tensors: Mapping[str, Tensor], arguments: Arguments) -> list[Any]:
        """What to give the graph's placeholders, in order."""
        leaves = dict(zip(self.inputs, pytree.tree_leaves(arguments), strict=True))
        known = {name: tensors[state] for name, state in self.states.items()} | dict(self.constants) | leaves
        return [known[node.name] for node in self.graph.graph.nodes if node.op == "placeholder"]


def arguments(example_inputs: Any) -> Arguments:
    """Example inputs as (args, kwargs): a tensor, a tuple or list of arguments, or a dict of keyword arguments."""
    if isinstance(example_inputs, Mapping):
        return (), dict(example_inputs)
    if isinstance(example_inputs, (tuple, list)):
        if example_inputs and all(type(value) is int for value in example_inputs):
            raise InvalidInputError(
                f"example_inputs={example_inputs!r} is a shape: give a tensor, as torch.randn{tuple(example_inputs)} is"
            )
        if len(example_inputs) == 2 and isinstance(example_inputs[0], tuple) and isinstance(example_inputs[1], dict):
            return example_inputs[0], example_inputs[1]
        return tuple(example_inputs), {}
    return (example_inputs,), {}


def graded(function: Callable[P, T]) -> Callable[P, T]:
    """The function as it runs where gradients are taken, whatever its caller's mode is."""
    return torch.inference_mode(False)(torch.enable_grad()(function))


def capture(model: nn.Module, example_inputs: Any, *, path: str = "", quick: bool = True) -> Captured:
    """Capture a forward pass: see `coreprune.model.record`, and with torch.export what that cannot do.

    Args:
        model: in any mode, on any device; not changed.
        example_inputs: see `arguments`.
        path: of the model within a larger one.
        quick: False for torch.export in any case.

    Raises:
        InvalidInputError: the model cannot be run on the inputs.
        UnsupportedModelError: it can be run and not captured, with the exporter's reason.
    """
    args, kwargs = arguments(example_inputs)
    if any(isinstance(leaf, Tensor) and not leaf.numel() for leaf in pytree.tree_leaves((args, kwargs))):
        raise InvalidInputError("example_inputs hold an empty tensor: pass a batch of one input or more")
    if not path and "use_cache" not in kwargs and "use_cache" in inspect.signature(model.forward).parameters:
        kwargs = {**kwargs, "use_cache": False}  # a cache of keys and values is no tensor, and no part of the network
    prefix = f"{path}." if path else ""
    with evaluating(model), torch.no_grad(), warnings.catch_warnings():
        warnings.simplefilter("ignore")
        known = recorded(model, args, kwargs) if quick else None
        if known is not None:
            graph, states, inputs = known
            return Captured(path, graph, {k: prefix + name for k, name in states.items()}, {}, inputs, (args, kwargs))
        try:
            with quiet():
                program = torch.export.export(model, args, kwargs, strict=False)
        except Exception as error:  # the exporter raises whatever the model's code raises
            if _registered(_run(model, args, kwargs)):
                return capture(model, (args, kwargs), path=path, quick=quick)
            raise UnsupportedModelError(
                f"{type(model).__name__} cannot be captured by torch.export ({first_line(error)})"
            ) from error
    signature = program.graph_signature
    first = _first_names(model)
    states = {**signature.inputs_to_parameters, **signature.inputs_to_buffers}
    states = {name: first.get(where, where) for name, where in states.items()}
    constants = {name: program.constants[where] for name, where in signature.inputs_to_lifted_tensor_constants.items()}
    nodes = [node.name for node in program.graph_module.graph.nodes if node.op == "placeholder"]
    return Captured(
        path,
        program.graph_module,
        {name: prefix + where for name, where in states.items()},
        constants,
        tuple(name for name in nodes if name not in {*states, *constants}),
        (args, kwargs),
    )


def _first_names(model: nn.Module) -> dict[str, str]:
    """Of every name of a parameter or buffer the first one of the same tensor: the exporter may say any of them."""
    first: dict[int, str] = {}
    every = [*model.named_parameters(remove_duplicate=False), *model.named_buffers(remove_duplicate=False)]
    return {name: first.setdefault(id(tensor), name) for name, tensor in every}


def _run(model: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
    """Run the model once, so that inputs that do not fit are told from code that cannot be captured."""
    if any(p.is_meta for p in model.parameters()):
        return None
    try:
        return model(*args, **kwargs)
    except Exception as error:
        shapes = [
            tuple(v.shape) if isinstance(v, Tensor) else type(v).__name__
            for v in pytree.tree_leaves((args, {k: v for k, v in kwargs.items() if k != "use_cache"}))
        ]
        raise InvalidInputError(
            f"example_inputs {shapes} do not fit {type(model).__name__} ({first_line(error)}): "
            "pass one batch as the model takes it, as a tensor, a tuple of arguments or a dict of keyword arguments, "
            "on the command line its shape (--input)"
        ) from error


def _registered(outputs: Any) -> bool:
    """Tell PyTorch of the dataclasses among outputs, so that it looks into them; whether there were any."""
    kinds = {type(leaf) for leaf in pytree.tree_leaves(outputs) if _is_filled(leaf)}
    for kind in kinds:
        torch.export.register_dataclass(kind)
    return bool(kinds)


def leaves_of(outputs: Any) -> list[Any]:
    """What outputs hold, in dataclasses too that PyTorch was not told of.

    Example:
        >>> leaves_of({"a": [1, 2], "b": (None, 3)})
        [1, 2, 3]
    """
    found = [leaf for leaf in pytree.tree_leaves(outputs) if leaf is not None]
    if not any(_is_filled(leaf) for leaf in found):
        return found
    inside = ([getattr(one, f.name) for f in fields(one)] if _is_filled(one) else [one] for one in found)
    return [leaf for parts in inside for leaf in leaves_of(parts)]


def _is_filled(value: Any) -> bool:
    return is_dataclass(value) and not isinstance(value, type)


def first_line(error: BaseException) -> str:
    """What an error says, in one line."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return lines[0] if lines else type(error).__name__


def rows_of(call: Arguments) -> int:
    """Inputs of a call: the first axis of its first tensor; 0 if it has none."""
    return next((len(v) for v in pytree.tree_leaves(call) if isinstance(v, Tensor) and v.dim()), 0)


def described(example_inputs: Any) -> Any:
    """Example inputs as plain data: shapes and dtypes of tensors, other values as they are; None if that cannot be."""
    if isinstance(example_inputs, Tensor):
        value: dict[str, Any] = {"tensor": list(example_inputs.shape), "dtype": str(example_inputs.dtype)[6:]}
        if not example_inputs.is_floating_point() and not example_inputs.is_meta and example_inputs.numel() <= 2**16:
            value["values"] = example_inputs.tolist()
        return value
    if isinstance(example_inputs, Mapping):
        return {"dict": {str(key): described(value) for key, value in example_inputs.items()}}
    if isinstance(example_inputs, (tuple, list)):
        return {"tuple": [described(value) for value in example_inputs]}
    return {"value": example_inputs if isinstance(example_inputs, (bool, int, float, str)) else None}


def rebuilt(data: Any) -> Any:
    """Inputs of the shapes that `described` wrote down; numbers that were not kept are zero.

    Example:
        >>> rebuilt(described({"x": torch.ones(2, 3)}))["x"].shape
        torch.Size([2, 3])
    """
    try:
        if "tensor" in data:
            kind = getattr(torch, data["dtype"])
            if "values" in data:
                return torch.tensor(data["values"], dtype=kind).reshape(data["tensor"])
            return torch.zeros(data["tensor"], dtype=kind)
        if "dict" in data:
            return {key: rebuilt(value) for key, value in data["dict"].items()}
        if "tuple" in data:
            return tuple(rebuilt(value) for value in data["tuple"])
        return data["value"]
    except (KeyError, TypeError, AttributeError, RuntimeError, ValueError) as error:
        raise InvalidInputError(
            f"the example inputs that the plan wrote down are damaged ({error!r}): pass example_inputs"
        ) from error

"""Discovery in stacks: Linear layers and elementwise activations, one after the other.

The forward pass is traced with torch.fx, so that nested `nn.Sequential`, own modules whose forward
is such a stack, and functional calls look the same. What cannot be followed is refused with a reason.
"""

from __future__ import annotations

import operator
from collections import Counter
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

import torch
from torch import Tensor, fx, nn
from torch.utils import _pytree as pytree

from coreprune.errors import InvalidInputError, UnsupportedModelError
from coreprune.maths.activation import Activation, activation
from coreprune.model.activations import of_function, of_module
from coreprune.model.capture import first_line
from coreprune.model.site import Inspection, Location, Reader, Refusal, Site
from coreprune.model.tensors import tensors_of
from coreprune.model.untouched import evaluating, holding, untouched

__all__ = ["discover"]

_PASS = (nn.Dropout, nn.AlphaDropout, nn.FeatureAlphaDropout, nn.Identity)
_PASS_CALLS = (nn.functional.dropout, "contiguous", "float", "double", "to")
_RESHAPES = (torch.flatten, "flatten", "view", "reshape", torch.reshape)


@dataclass(frozen=True)
class _Step:
    """One thing that happens to the activations on their way through the network."""

    kind: str  # "linear", "activation", "reshape" or "other"
    name: str
    module: nn.Linear | None = None
    activation: Activation | None = None
    sized: bool = False  # a reshape to a size that the code holds


def discover(model: nn.Module, example_inputs: Tensor | None = None) -> Inspection:
    """Find every hidden layer of a stack that can be cut.

    Args:
        model: a stack of Linear layers and elementwise activations, in any nesting.
        example_inputs: one batch, (batch, …); without it the input is taken to be (batch, in_features).

    Returns:
        Sites in forward order and the refusals with their reasons.

    Raises:
        InvalidInputError: not a module, or inputs that do not fit.
        UnsupportedModelError: the forward pass is not a stack.
    """
    if not isinstance(model, nn.Module):
        raise InvalidInputError(f"a torch.nn.Module was expected, but this is a {type(model).__name__}: pass the model")
    steps = [_step(model, node) for node in _chain(model, whole=example_inputs is None)]
    before = next((i for i, step in enumerate(steps) if step.kind == "linear"), len(steps))
    strange = any(
        step.kind == "other" or step.activation not in {None, activation("identity")} for step in steps[:before]
    )
    linears = [i for i, step in enumerate(steps) if step.kind == "linear"]
    if not linears:
        raise UnsupportedModelError(
            f"{type(model).__name__} has no Linear layer, so nothing can be cut: coreprune cuts the hidden units "
            "between two Linear layers"
        )
    first = steps[linears[0]].module
    assert first is not None
    features = first.in_features
    _check_inputs(model, features, example_inputs)
    flat = example_inputs is None or example_inputs.dim() == 2 or any(s.kind == "reshape" for s in steps[: linears[0]])

    uses = Counter(id(step.module.weight) for step in steps if step.module is not None)
    uses |= Counter(id(parameter) for _, parameter in model.named_parameters(remove_duplicate=False))
    sites: list[Site] = []
    chain: list[Site | None] = [None] if strange else []
    refused: list[Refusal] = []
    for here, there in zip(linears, [*linears[1:], len(steps)], strict=True):
        between, reader = steps[here + 1 : there], steps[there] if there < len(steps) else None
        reason = _refusal(steps[here], between, reader, uses, flat)
        if reader is not None:
            chain.append(_site(steps[here], between, reader) if _one_activation(between) else None)
        if reason:
            refused.append(Refusal(steps[here].name, reason))
        else:
            assert reader is not None
            sites.append(_site(steps[here], between, reader))
    if example_inputs is None:
        refused += [Refusal(name, "only Linear layers are followed without example_inputs") for name in _mixing(model)]
    shapes = {name: tuple(tensor.shape) for name, tensor in model.state_dict().items()}
    return Inspection(tuple(sites), tuple(refused), shapes, features, tuple(chain), _tail(steps[linears[-1] + 1 :]))


def _mixing(model: nn.Module) -> list[str]:
    """Modules that are no Linear layer and have a matrix or a kernel of their own, such as convolutions."""
    return [
        name
        for name, module in model.named_modules()
        if type(module) is not nn.Linear and any(p.dim() > 1 for p in module.parameters(recurse=False))
    ]


class _Begun(fx.Tracer):
    """Goes no further than a layer with parameters, as a convolution, that comes before any Linear one."""

    begun = False

    def call_module(self, m: nn.Module, forward: Any, args: Any, kwargs: Any) -> Any:
        """One module."""
        self.begun |= type(m) is nn.Linear
        layer = self.is_leaf_module(m, self.path_of_module(m)) and next(m.parameters(recurse=False), None) is not None
        if layer and not self.begun:
            raise UnsupportedModelError(f"it begins with a {type(m).__name__}")
        return super().call_module(m, forward, args, kwargs)


def _chain(model: nn.Module, *, whole: bool) -> list[fx.Node]:
    """The nodes of the forward pass, which must follow each other one by one.

    Args:
        model: the model. whole: otherwise a model that does not begin with a Linear layer is not looked at further.
    """
    try:
        with untouched(model):
            graph = (fx.Tracer() if whole else _Begun()).trace(model)
    except Exception as error:
        raise UnsupportedModelError(
            f"the forward pass of {type(model).__name__} cannot be traced ({first_line(error)}): "
            "only stacks of Linear layers and elementwise activations can be cut"
        ) from error
    nodes = [node for node in graph.nodes if (node.users or node.op == "output") and not _is_size(node)]
    inputs = [node for node in nodes if node.op == "placeholder"]
    if len(inputs) != 1:
        raise UnsupportedModelError(f"{type(model).__name__} takes {len(inputs)} inputs: a stack takes one tensor")
    for before, node in pairwise(nodes):
        users = [user for user in before.users if not _is_size(user)]
        if users != [node] or [source for source in node.all_input_nodes if not _is_size(source)] != [before]:
            raise UnsupportedModelError(
                f"{type(model).__name__} is not a stack: what '{_path(before)}' gives does not go to one next step "
                f"alone, or '{_path(node)}' takes something else too"
            )
    if nodes[-1].op != "output" or not isinstance(nodes[-1].args[0], fx.Node):
        raise UnsupportedModelError(f"{type(model).__name__} does not return one tensor, as a stack does")
    return nodes[1:-1]


def _is_size(node: fx.Node) -> bool:
    """Whether a node asks for a shape, or takes an entry of one."""
    if node.op == "call_method" and node.target == "size":
        return True
    if node.op == "call_function" and node.target is getattr and len(node.args) > 1 and node.args[1] == "shape":
        return True
    source = node.args[0] if node.args else None
    return node.target is operator.getitem and isinstance(source, fx.Node) and _is_size(source)


def _path(node: fx.Node) -> str:
    return str(node.target) if node.op == "call_module" else node.name


def _step(model: nn.Module, node: fx.Node) -> _Step:
    if node.op == "call_module":
        module = model.get_submodule(str(node.target))
        if type(module) is nn.Linear:
            return _Step("linear", str(node.target), module=module)
        if isinstance(module, _PASS):
            return _Step("activation", str(node.target), activation=activation("identity"))
        if isinstance(module, nn.Flatten):
            return _Step("reshape", str(node.target))
        phi = of_module(module)
        return _Step("activation" if phi else "other", f"{node.target} ({type(module).__name__})", activation=phi)
    target: Any = node.target
    if target in _PASS_CALLS:
        return _Step("activation", node.name, activation=activation("identity"))
    if target in _RESHAPES:
        flattens = target in {torch.flatten, "flatten"}  # whose numbers are axes
        return _Step("reshape", node.name, sized=not flattens and _holds_size(node.args[1:], node.kwargs))
    phi = of_function(target, tuple(node.args[1:]), dict(node.kwargs))
    return _Step("activation" if phi else "other", node.name, activation=phi)


def _holds_size(*arguments: Any) -> bool:
    """Whether a size is among the arguments of a view or reshape, other than one and what is left."""
    return any(isinstance(value, int) and value > 1 for value in pytree.tree_leaves(arguments))


def _refusal(here: _Step, between: list[_Step], reader: _Step | None, uses: Counter[int], flat: bool) -> str | None:
    """Why the units between two Linear layers cannot be cut, or None if they can."""
    if reader is None:
        return "its units are the network's output"
    strange = [step.name for step in between if step.kind == "other"]
    if strange:
        return f"no elementwise activation is known for {strange[0]}"
    bent = [step.activation.name for step in between if step.activation and step.activation.name != "identity"]
    if len(bent) > 1:
        return f"{len(bent)} activations follow each other ({', '.join(bent)})"
    if not flat and any(step.kind == "reshape" for step in between):
        return "its units are reshaped before they are read"
    sized = next((step.name for step in between if step.sized), None)
    if sized is not None:
        return f"the code holds a size that its units are reshaped to ({sized}): write -1 there"
    assert here.module is not None
    assert reader.module is not None
    if here.module.out_features != reader.module.in_features:
        return f"its {here.module.out_features} units are reshaped and read as {reader.module.in_features}"
    for step in (here, reader):
        assert step.module is not None
        if any(uses[id(parameter)] > 1 for parameter in step.module.parameters()):
            return f"the weight or bias of {step.name} is used more than once"
        if getattr(step.module, "parametrizations", None) or hasattr(step.module, "weight_g"):
            return f"{step.name} is parametrised: remove the parametrisation first"
    return None


def _tail(steps: list[_Step]) -> str:
    identity = activation("identity")
    return ", ".join(step.name for step in steps if step.kind == "other" or step.activation not in {None, identity})


def _one_activation(between: list[_Step]) -> bool:
    bent = [step for step in between if step.activation and step.activation.name != "identity"]
    return len(bent) <= 1 and not any(step.kind == "other" for step in between)


def _site(here: _Step, between: list[_Step], reader: _Step) -> Site:
    assert here.module is not None
    bent = [step.activation for step in between if step.activation and step.activation.name != "identity"]
    phi = bent[0] if bent else activation("identity")
    return Site(
        name=here.name,
        kind="linear",
        units=here.module.out_features,
        activation=phi.name,
        parameters=phi.parameters,
        incoming=Location(f"{here.name}.weight", 0),
        bias=Location(f"{here.name}.bias", 0),
        readers=(Reader(Location(f"{reader.name}.weight", 1), f"{reader.name}.bias"),),
    )


def _runs_on_shapes(model: nn.Module, x: Tensor) -> bool:
    """Whether a model takes an input of this shape. Types say nothing there: the input is to be of the weights' own."""
    if any(p.dtype != x.dtype for p in model.parameters()):
        return False
    try:
        with holding(model, {id(t): t.to("meta") for t in tensors_of(model).values()}):
            model(x.to("meta"))
    except Exception:  # it raises whatever its code raises, and some needs values
        return False
    return True


def _check_inputs(model: nn.Module, features: int, example_inputs: Tensor | None) -> None:
    """Run the model once on the example, so that a wrong shape is told before anything is decided."""
    if example_inputs is None:
        return
    if not isinstance(example_inputs, Tensor):
        raise InvalidInputError(
            f"example_inputs is a {type(example_inputs).__name__}: a stack takes one tensor "
            f"whose last axis has {features}"
        )
    try:
        with evaluating(model), torch.no_grad():
            if not _runs_on_shapes(model, example_inputs):
                model(example_inputs)
    except (RuntimeError, IndexError) as error:
        raise InvalidInputError(
            f"example_inputs of shape {tuple(example_inputs.shape)} and {example_inputs.dtype} do not fit the model "
            f"({first_line(error)}): pass one batch as the model takes it; its first Linear layer reads {features} "
            "features"
        ) from error

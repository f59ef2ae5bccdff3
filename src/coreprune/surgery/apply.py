"""Put edited tensors into a module, so that it is the same class with smaller layers."""

from __future__ import annotations

import copy
from collections.abc import Mapping
from typing import Any

from torch import Tensor, nn

__all__ = ["attributes", "install", "spared_copy"]

#: class → attribute that tells a size → (parameter, axis) it must agree with
_SIZES: dict[type[nn.Module], dict[str, tuple[str, int]]] = {
    nn.Linear: {"in_features": ("weight", 1), "out_features": ("weight", 0)},
}


def spared_copy(model: nn.Module, names: Mapping[str, Tensor]) -> nn.Module:
    """A deep copy of a module that shares, instead of copies, the parameters named: those are about to be replaced."""
    own = dict(model.named_parameters(remove_duplicate=False))
    return copy.deepcopy(model, {id(own[name]): own[name] for name in names if name in own})


def install(model: nn.Module, tensors: Mapping[str, Tensor]) -> None:
    """Replace parameters and buffers by name, and set the attributes that tell their sizes.

    Args:
        model: changed in place.
        tensors: new values; requires_grad is taken over from the parameter that goes.
    """
    for name, value in tensors.items():
        path, _, leaf = name.rpartition(".")
        module = model.get_submodule(path)
        if leaf in module._buffers:
            module._buffers[leaf] = value
            continue
        old = module._parameters.get(leaf)
        like = old if old is not None else next(module.parameters(recurse=False))
        module.register_parameter(leaf, nn.Parameter(value.to(like.device), requires_grad=like.requires_grad))
    for path in {name.rpartition(".")[0] for name in tensors}:
        module = model.get_submodule(path)
        for attribute, value in attributes(module).items():
            setattr(module, attribute, value)


def attributes(module: nn.Module) -> dict[str, Any]:
    """The size attributes of a module as its tensors say they must be.

    Example:
        >>> attributes(nn.Linear(3, 5))
        {'in_features': 3, 'out_features': 5}
    """
    sizes = _SIZES.get(type(module), {})
    return {name: getattr(module, tensor).shape[axis] for name, (tensor, axis) in sizes.items()}

"""Which module or function of PyTorch is which activation."""

from __future__ import annotations

import operator
from collections.abc import Callable
from typing import Any

import torch
from torch import fx, nn
from torch.nn import functional as F

from coreprune.maths.activation import Activation, activation

__all__ = ["of_aten", "of_function", "of_module"]

_PLAIN: dict[type[nn.Module], str] = {
    nn.ReLU: "relu",
    nn.Sigmoid: "sigmoid",
    nn.ReLU6: "relu6",
    nn.SELU: "selu",
    nn.Tanh: "tanh",
    nn.Hardsigmoid: "hardsigmoid",
    nn.Hardswish: "hardswish",
    nn.SiLU: "silu",
    nn.Mish: "mish",
    nn.Identity: "identity",
}

_WITH_PARAMETERS: dict[type[nn.Module], Callable[[Any], Activation]] = {
    nn.LeakyReLU: lambda m: activation("leaky_relu", slope=m.negative_slope),
    nn.ELU: lambda m: activation("elu", alpha=m.alpha),
    nn.Hardtanh: lambda m: activation("hardtanh", low=m.min_val, high=m.max_val),
    nn.GELU: lambda m: activation("gelu" if m.approximate == "none" else "gelu_tanh"),
}

_FUNCTIONS: dict[Any, str] = {
    torch.relu: "relu",
    F.relu: "relu",
    "relu": "relu",
    "relu_": "relu",
    torch.sigmoid: "sigmoid",
    F.sigmoid: "sigmoid",
    "sigmoid": "sigmoid",
    torch.tanh: "tanh",
    F.tanh: "tanh",
    "tanh": "tanh",
    F.relu6: "relu6",
    F.selu: "selu",
    torch.selu: "selu",
    F.hardsigmoid: "hardsigmoid",
    F.hardswish: "hardswish",
    F.silu: "silu",
    F.mish: "mish",
}


def of_module(module: nn.Module) -> Activation | None:
    """The activation a module computes, or None if it is not a known one.

    Example:
        >>> of_module(nn.GELU(approximate="tanh")).name
        'gelu_tanh'
    """
    kind: type[nn.Module] = type(module)
    if kind in _PLAIN:
        return activation(_PLAIN[kind])
    if kind in _WITH_PARAMETERS:
        return _WITH_PARAMETERS[kind](module)
    if isinstance(module, nn.Softplus):
        return _softplus(float(module.beta), float(module.threshold))
    if isinstance(module, nn.PReLU) and module.weight.numel() == 1 and not module.weight.is_meta:
        return activation("leaky_relu", slope=float(module.weight.detach()))
    return None


def of_function(target: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Activation | None:
    """The activation that a call in a captured graph computes, or None.

    Args:
        target: the function, or the name of a tensor method.
        args: its arguments after the tensor. kwargs: its keyword arguments.
    """
    if target in _FUNCTIONS:
        return activation(_FUNCTIONS[target])
    if target is F.gelu:
        approximate = kwargs.get("approximate", args[0] if args else "none")
        return activation("gelu" if approximate == "none" else "gelu_tanh")
    if target is F.leaky_relu:
        return activation("leaky_relu", slope=float(kwargs.get("negative_slope", args[0] if args else 0.01)))
    if target is F.elu:
        return activation("elu", alpha=float(kwargs.get("alpha", args[0] if args else 1.0)))
    if target is F.softplus:
        threshold = kwargs.get("threshold", args[1] if len(args) > 1 else 20.0)
        return _softplus(float(kwargs.get("beta", args[0] if args else 1.0)), float(threshold))
    if target is F.hardtanh:
        low = kwargs.get("min_val", args[0] if args else -1.0)
        high = kwargs.get("max_val", args[1] if len(args) > 1 else 1.0)
        return activation("hardtanh", low=float(low), high=float(high))
    if target is operator.pos:
        return activation("identity")
    return None


_ATEN = {
    "relu": "relu", "relu_": "relu", "sigmoid": "sigmoid", "sigmoid_": "sigmoid", "tanh": "tanh", "tanh_": "tanh",
    "relu6": "relu6", "relu6_": "relu6", "selu": "selu", "selu_": "selu", "hardsigmoid": "hardsigmoid",
    "hardsigmoid_": "hardsigmoid", "hardswish": "hardswish", "hardswish_": "hardswish", "silu": "silu", "silu_": "silu",
    "mish": "mish", "mish_": "mish",
}  # fmt: skip


def of_aten(node: fx.Node) -> Activation | None:
    """The activation that a node of a captured graph computes, or None."""
    name = str(node.target).removeprefix("aten.").partition(".")[0]
    numbers = [a for a in node.args[1:] if isinstance(a, (int, float))]
    if name in _ATEN:
        return activation(_ATEN[name])
    if name == "gelu":
        return activation("gelu_tanh" if node.kwargs.get("approximate") == "tanh" else "gelu")
    if name in {"leaky_relu", "leaky_relu_"}:
        return activation("leaky_relu", slope=float(numbers[0]) if numbers else 0.01)
    if name in {"elu", "elu_"}:
        return activation("elu", alpha=float(numbers[0]) if numbers else 1.0) if len(numbers) < 2 else None
    if name in {"hardtanh", "hardtanh_"}:
        low, high = (*numbers, -1.0, 1.0)[:2] if len(numbers) == 2 else (-1.0, 1.0)
        return (
            activation("relu6")
            if (low, high) == (0.0, 6.0)
            else activation("hardtanh", low=float(low), high=float(high))
        )
    if name == "softplus":
        return _softplus(float(numbers[0]) if numbers else 1.0, float(numbers[1]) if len(numbers) > 1 else 20.0)
    return None


def _softplus(beta: float, threshold: float) -> Activation | None:
    """PyTorch's softplus turns linear where β·z exceeds the threshold; below 15 that jump is more than rounding."""
    return activation("softplus", beta=beta) if threshold >= 15 and beta > 0 else None

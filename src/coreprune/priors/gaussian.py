"""Gaussian inputs, carried through the network in closed form: no data, no sample, no random number."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor

from coreprune.errors import InvalidInputError
from coreprune.maths.layer import Layer
from coreprune.maths.propagate import Component, Law, Pair, law_of

__all__ = ["Gaussian", "Propagation", "check_deviations"]


@dataclass(frozen=True)
class Gaussian:
    """Inputs x ~ N(mean, diag(std²)), or a mixture of such over several radii.

    The scale is the user's to give: it says how large inputs are against the biases of the first
    layer. A feature that lies in [a, b] has a standard deviation of at most (b − a)/2 (Popoviciu), so
    for pixels in [0, 1] std = 0.5. Without any knowledge the default is std = β/√d, inputs of norm β in
    d dimensions, which is 1 for the default radius.

    Attributes:
        mean: of every feature, or (d,).
        std: of every feature, or (d,); None for β/√d.
        scales: factors on std; more than one make a mixture of equal weights.

    Example:
        >>> Gaussian(std=0.5).named(784, 28.0)
        'gaussian inputs, mean 0, std 0.5'
    """

    mean: float | Tensor = 0.0
    std: float | Tensor | None = None
    scales: Sequence[float] = (1.0,)

    @property
    def data_used(self) -> bool:
        """False."""
        return False

    @property
    def said(self) -> str:
        """The prior in words, for a network that is no stack."""
        mean = self.mean if isinstance(self.mean, float) else 0.0
        std = self.std if isinstance(self.std, float) else 1.0
        return f"random inputs (numbers N({mean:g}, {std:g}²), tokens uniform)"

    def named(self, features: int, radius: float) -> str:
        """The prior in words."""
        mean = f"mean {self.mean:.4g}" if not isinstance(self.mean, Tensor) else "mean per feature"
        if isinstance(self.std, Tensor):
            std = "std per feature"
        else:
            std = f"std {self.std if self.std is not None else radius / math.sqrt(features):.4g}"
        mixed = "" if len(self.scales) == 1 else f" times {', '.join(f'{s:.4g}' for s in self.scales)}"
        return f"gaussian inputs, {mean}, {std}{mixed}"

    def to_json(self) -> dict[str, Any]:
        """As plain data."""
        mean, std = (v.tolist() if isinstance(v, Tensor) else v for v in (self.mean, self.std))
        return {"mean": mean, "std": std, "scales": list(self.scales)}

    @classmethod
    def from_json(cls, data: Mapping[str, Any]) -> Gaussian:
        """The inverse of `to_json`.

        Raises:
            InvalidInputError: the data are not those of a prior.
        """
        try:
            mean, std = (torch.tensor(v) if isinstance(v, list) else v for v in (data["mean"], data["std"]))
            return cls(mean, std, tuple(data["scales"]))
        except (KeyError, TypeError, ValueError) as error:
            raise InvalidInputError(f"the prior that was written down is damaged ({error!r}): give prior=") from error

    def inputs(self, features: int, radius: float) -> Pair:
        """The law of the network's inputs.

        Args:
            features: d. radius: β, for the default scale.

        Raises:
            InvalidInputError: a mean or std that does not fit or is not finite, or a negative std.
        """
        mean = _vector(self.mean, features, "mean")
        std = _vector(radius / math.sqrt(features) if self.std is None else self.std, features, "std")
        check_deviations(std)
        if not self.scales or not all(math.isfinite(s) and s >= 0 for s in self.scales):
            raise InvalidInputError(f"scales={tuple(self.scales)} was asked of the prior: give non-negative factors")
        return Pair(tuple(Component(1.0, mean, (s * std).square()) for s in self.scales))


def check_deviations(std: Tensor) -> None:
    """Raise InvalidInputError where a standard deviation is negative."""
    if bool((std < 0).any()):
        raise InvalidInputError(
            f"std={float(std.min()):g} was asked of the prior: give standard deviations, which are not negative"
        )


@dataclass(frozen=True)
class Propagation:
    """A Gaussian prior on its way through both networks, the dense one and the one that is being cut.

    Attributes:
        inputs: the law of what the next layer reads.
    """

    inputs: Pair

    def law(self, dense: Layer, now: Layer) -> Law:
        """The law of a site's units: `dense` as they were, `now` as the cuts before left them."""
        return law_of(self._before(dense, now), dense.activation)

    def beyond(self, dense: Layer, cut: Layer) -> Propagation:
        """The walk after this layer, `cut` with its own cut made."""
        return replace(self, inputs=self._before(dense, cut).units(dense.activation))

    def _before(self, dense: Layer, now: Layer) -> Pair:
        if self.inputs.split is None and now is dense:
            return self.inputs.linear(dense.incoming, dense.bias)
        return self.inputs.linear(dense.incoming, dense.bias, now.incoming, now.bias)


def _vector(value: float | Tensor, features: int, what: str) -> Tensor:
    try:
        vector = torch.as_tensor(value, dtype=torch.float64).detach().cpu().flatten()
    except (TypeError, ValueError, RuntimeError) as error:
        raise InvalidInputError(f"the prior's {what} is {value!r}: give a number, or one for every feature") from error
    if vector.numel() not in {1, features}:
        raise InvalidInputError(
            f"the prior's {what} has {vector.numel()} entries, but the network reads {features} features: "
            f"give one number or {features}"
        )
    if not bool(torch.isfinite(vector).all()):
        raise InvalidInputError(f"the prior's {what} is not finite: give numbers")
    return vector.expand(features).clone()

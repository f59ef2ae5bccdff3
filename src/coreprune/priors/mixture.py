"""Several priors at once, each with a weight: a convex combination of their laws.

Moments are linear in the law: E h and E hhᵀ of Σ w_i P_i are Σ w_i times those of P_i. So nothing but the inputs has to
be mixed, and every part gives as many of them as its weight says.

Source: 01-maths §4; a mixture guards against each part's own blind spots.
"""

from __future__ import annotations

import math
import numbers
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from coreprune.errors import InvalidInputError
from coreprune.priors.data import Data
from coreprune.priors.filled import MaskFilled
from coreprune.priors.gaussian import Gaussian
from coreprune.priors.generated import Generated
from coreprune.priors.matched import Matched
from coreprune.priors.text import Text
from coreprune.priors.zipf import Zipf

__all__ = ["Mixture", "Part"]

Part = Gaussian | Data | Generated | MaskFilled | Matched | Text | Zipf
_TEXTS, _IMAGES = (Generated, MaskFilled, Text, Zipf), (Data, Matched)


@dataclass(frozen=True)
class Mixture:
    """The prior Σ w_i P_i.

    A part gives at most as many tokens or images as it says; the one that comes to its end first says how many inputs
    there are in all, and of noise there are as many as it takes. Sequences are all as long as the longest part's.

    Attributes:
        parts: prior → weight, or pairs of both. Only the proportions of the weights count.

    Example:
        >>> import coreprune as cp
        >>> mixture = cp.Mixture({cp.Zipf(tokens=4096): 3, cp.Gaussian(): 1})
        >>> [weight for _, weight in mixture.weighed]
        [0.75, 0.25]
        >>> mixture.data_used
        False
    """

    parts: Mapping[Part, float] | Sequence[tuple[Part, float]]

    @property
    def weighed(self) -> tuple[tuple[Part, float], ...]:
        """The parts with weights that add up to one.

        Raises:
            InvalidInputError: no mixture, or one of inputs that do not go together.
        """
        pairs: list[Any] = list(self.parts.items() if isinstance(self.parts, Mapping) else self.parts)
        if not pairs or not all(isinstance(pair, tuple) and len(pair) == 2 for pair in pairs):
            raise InvalidInputError(
                f"Mixture({self.parts!r}) was given: give priors with their weights, such as Mixture({{Text(): 0.5, "
                "Generated(): 0.5})"
            )
        for part, weight in pairs:
            if not isinstance(part, Part):
                raise InvalidInputError(f"{part!r} was given as part of a mixture: give priors, such as Text()")
            if not isinstance(weight, numbers.Real) or not (math.isfinite(weight) and float(weight) > 0):
                raise InvalidInputError(f"a weight of {weight!r} was given in a mixture: give positive numbers")
        texts, images = ([p for p, _ in pairs if isinstance(p, kinds)] for kinds in (_TEXTS, _IMAGES))
        if texts and images:
            raise InvalidInputError(
                f"{type(texts[0]).__name__} and {type(images[0]).__name__} were given in one mixture, which no network "
                "takes in the same place: mix text with text (your own as Text(path)), and images with images"
            )
        total = sum(float(weight) for _, weight in pairs)
        return tuple((part, float(weight) / total) for part, weight in pairs)

    @property
    def texts(self) -> bool:
        """Whether sequences of tokens are mixed."""
        return any(isinstance(part, _TEXTS) for part, _ in self.weighed)

    @property
    def data_used(self) -> bool:
        """Whether any part uses data."""
        return any(getattr(part, "data_used", False) for part, _ in self.weighed)

    @property
    def said(self) -> str:
        """The prior in words."""
        return "mixture of " + " and ".join(f"{weight:.3g} {part.said}" for part, weight in self.weighed)

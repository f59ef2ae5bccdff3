"""The law that a norm layer holds its outputs to, whatever comes in.

A LayerNorm gives y = γ ∘ x̂ + β, an RMSNorm y = γ ∘ x̂, with ‖x̂‖² = d for every input. If no direction of x̂ is likelier
than another, then E y = β and E (y_i − β_i)² = γ_i² exactly, and in many dimensions y is all but N(β, diag γ²). What a
network is really given, x̂ of a few directions and a few very large entries, no norm layer knows.

Source: 01-maths §4, norm layer.
"""

from __future__ import annotations

from dataclasses import dataclass

__all__ = ["NormLayer"]


@dataclass(frozen=True)
class NormLayer:
    """The prior that every LayerNorm and RMSNorm gets vectors of all directions alike.

    What lies between two norms is run; in front of the first one the inputs are noise.

    Attributes:
        samples: vectors that each norm gives, at least.

    Example:
        >>> import coreprune as cp
        >>> print(cp.NormLayer().said)
        all directions alike at every LayerNorm and RMSNorm (16,384 vectors at least)
    """

    samples: int = 16_384

    @property
    def data_used(self) -> bool:
        """False."""
        return False

    @property
    def said(self) -> str:
        """The prior in words."""
        return f"all directions alike at every LayerNorm and RMSNorm ({self.samples:,} vectors at least)"

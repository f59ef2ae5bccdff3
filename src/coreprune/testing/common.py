"""What the checks share: their error, their result, and watching the global random states."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import NoReturn

import numpy as np
import torch
from torch import Tensor

__all__ = ["Checker", "Conformance", "ConformanceError", "other_global_state", "same"]


class ConformanceError(AssertionError):
    """An extension is not what it says it is: what was checked, what was found, what to do.

    Example:
        >>> from dataclasses import replace
        >>> import coreprune as cp
        >>> from coreprune.testing import check_method
        >>> try:
        ...     check_method(replace(cp.METHODS["uniform"], random=False))
        ... except ConformanceError as error:
        ...     print(str(error).split(",")[0])
        method 'uniform': it says random=False
    """


@dataclass(frozen=True)
class Conformance:
    """What a check found in order.

    Attributes:
        subject: what was checked, such as "activation 'relu'".
        checked: what holds, in words.
        refused: of a rule, the units that stay whole, with the reason of each. A refusal is a valid outcome, but no cut
            was compared for these units.

    Example:
        >>> print(Conformance("method 'mine'", ("keeps exactly k units",)))
        method 'mine': keeps exactly k units
    """

    subject: str
    checked: tuple[str, ...]
    refused: tuple[str, ...] = ()

    def __str__(self) -> str:
        lines = [f"{self.subject}: {'; '.join(self.checked)}"]
        return "\n".join([*lines, *(f"stays whole: {reason}" for reason in self.refused)])


class Checker:
    """Collects what holds, and raises at what does not.

    Attributes:
        subject: what is checked, in words.
    """

    def __init__(self, subject: str) -> None:
        self.subject = subject
        self._checked: list[str] = []

    def fail(self, found: str, do: str) -> NoReturn:
        """Raise the error, in one sentence."""
        raise ConformanceError(f"{self.subject}: {found}: {do}")

    def require(self, holds: object, found: str, do: str) -> None:
        """Raise the error unless something holds."""
        if not bool(holds):
            self.fail(found, do)

    def passed(self, what: str) -> None:
        """Write down what was found in order, once."""
        if what not in self._checked:
            self._checked.append(what)

    def result(self, refused: tuple[str, ...] = ()) -> Conformance:
        """What was found in order."""
        return Conformance(self.subject, tuple(self._checked), refused)

    @contextmanager
    def untouched_globals(self, do: str) -> Iterator[None]:
        """Require that the global generators of torch and NumPy are as they were."""
        before = torch.get_rng_state(), repr(np.random.get_state())  # noqa: NPY002
        yield
        after = torch.get_rng_state(), repr(np.random.get_state())  # noqa: NPY002
        alone = torch.equal(before[0], after[0]) and before[1] == after[1]
        self.require(alone, "the global random state was changed", do)


@contextmanager
def other_global_state(seed: int) -> Iterator[None]:
    """Another state of torch's global generator, for as long as the context lasts."""
    with torch.random.fork_rng(devices=[]):
        torch.set_rng_state(torch.Generator().manual_seed(seed).get_state())
        yield


def same(one: Tensor | None, other: Tensor | None) -> bool:
    """Whether two tensors are the same numbers in the same precision, NaN where NaN is, or both missing."""
    if one is None or other is None:
        return one is other
    if one.dtype != other.dtype or one.shape != other.shape:
        return False
    return bool(((one == other) | (one.isnan() & other.isnan())).all())

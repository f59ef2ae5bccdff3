"""Everything coreprune refuses, it refuses with one of these: what was asked, what was found, what to do."""

from __future__ import annotations


class CorepruneError(Exception):
    """Base class of every error that the user can mend. The command line prints it on one line and exits 2.

    Example:
        >>> import coreprune as cp
        >>> from torch import nn
        >>> net = nn.Sequential(nn.Linear(4, 8), nn.ReLU(), nn.Linear(8, 2))
        >>> try:
        ...     cp.prune(net, units={"9": 3})
        ... except cp.CorepruneError as error:
        ...     print(error)
        no site matches '9'; the sites are: 0
    """


class UnknownNameError(CorepruneError):
    """A name (method, activation, site, command option) that is not in the table it is looked up in."""


class InvalidInputError(CorepruneError):
    """A value, shape or tensor that cannot be worked with."""


class UnsupportedModelError(CorepruneError):
    """A network, or a part of it, whose structure coreprune cannot follow.

    Attributes:
        ignore: names of sites without which the same call was found to work, for its argument `ignore`; empty where
            none were looked for or found.

    Example:
        >>> UnsupportedModelError("no", ignore=["blocks.0.conv"]).ignore
        ('blocks.0.conv',)
    """

    def __init__(self, message: str, *, ignore: list[str] | tuple[str, ...] = ()) -> None:
        """What is said, and what to leave whole."""
        super().__init__(message)
        self.ignore = tuple(ignore)


class CheckpointError(CorepruneError):
    """A file or directory that cannot be read, does not fit, or cannot be written."""

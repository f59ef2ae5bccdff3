"""What the tests of the command line share."""

from __future__ import annotations

MODEL = "helpers:two_sites"


def good(result):
    """The stdout of a command that went well and said nothing else."""
    code, out, err = result
    assert (code, err) == (0, ""), err
    return out

"""What is asked twice, or cannot be meant, is refused in a sentence."""

from __future__ import annotations

import pytest


@pytest.mark.parametrize(
    "options, why",
    [
        (["--budget", "params=90%", "--budget", "flops=80%"], "--budget was given 2 times"),
        (["--units", "0=100", "--units", "0=50"], "--units was given twice for '0'"),
        (["--remove", "0=.1", "--remove", "0=.5"], "--remove was given twice for '0'"),
        (["--remove", "0.1", "--protect", "0=200%"], "below 100%"),
        (["--remove", "0.1", "--seed", str(2**70)], "between -2**62 and 2**62"),
    ],
)
def test_options_that_contradict_each_other(options, why, command, tmp_path):
    code, out, said = command("prune", "coreprune.demo:lenet", "small", *options)
    assert (code, out) == (2, "")
    assert why in " ".join(said.split())
    assert not (tmp_path / "small").exists()

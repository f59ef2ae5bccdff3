"""Settings of the whole suite, docstrings' examples among it: one thread, and the same random numbers everywhere."""

from __future__ import annotations

import pytest
import torch
from hypothesis import HealthCheck, settings

torch.set_num_threads(1)
settings.register_profile(
    "coreprune", deadline=None, database=None, derandomize=True, suppress_health_check=[HealthCheck.too_slow]
)
settings.load_profile("coreprune")


@pytest.hookimpl(tryfirst=True)
def pytest_runtest_setup() -> None:
    """Networks that a test makes, or a fixture of any scope for it, start from the same weights on every run."""
    torch.manual_seed(0)

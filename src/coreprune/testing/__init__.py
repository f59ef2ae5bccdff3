"""Checks that an activation, method, operator rule or prior of your own must pass, as ours do.

Each check raises `ConformanceError`, an AssertionError, at the first thing that is wrong: what was checked, what was
found, and what to do. It returns what was checked. Nothing else in the package imports this room, and it needs no
test runner.
"""

from coreprune.testing.activations import check_activation
from coreprune.testing.common import Conformance, ConformanceError
from coreprune.testing.methods import check_method
from coreprune.testing.operators import check_rule
from coreprune.testing.priors import check_prior

__all__ = ["Conformance", "ConformanceError", "check_activation", "check_method", "check_prior", "check_rule"]

"""Make trained PyTorch networks smaller without any of their data, and say how large the error can be."""

from coreprune.api import apply, inspect, plan, prune, verify
from coreprune.errors import CorepruneError
from coreprune.maths.methods import METHODS
from coreprune.plan import Plan
from coreprune.priors.data import Data
from coreprune.priors.filled import MaskFilled
from coreprune.priors.gaussian import Gaussian
from coreprune.priors.generated import Generated
from coreprune.priors.matched import Matched
from coreprune.priors.mixture import Mixture
from coreprune.priors.normlayer import NormLayer
from coreprune.priors.text import Text
from coreprune.priors.zipf import Zipf
from coreprune.recovery import distill
from coreprune.result import Pruned, load

__version__ = "0.1.0"

__all__ = [
    "METHODS",
    "CorepruneError",
    "Data",
    "Gaussian",
    "Generated",
    "MaskFilled",
    "Matched",
    "Mixture",
    "NormLayer",
    "Plan",
    "Pruned",
    "Text",
    "Zipf",
    "apply",
    "distill",
    "inspect",
    "load",
    "plan",
    "prune",
    "verify",
]

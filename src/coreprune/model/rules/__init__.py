"""What each operator does to labels: see `coreprune.model.rules.table`."""

from coreprune.model.rules import elementwise, maps, pieces, shapes, sums
from coreprune.model.rules.table import RULES, Rule

__all__ = ["RULES", "Rule", "elementwise", "maps", "pieces", "shapes", "sums"]

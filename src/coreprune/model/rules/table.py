"""What each operator does to labels: one small rule for each, in one table.

A rule gets the walk, the node and its arguments, parameters and activations as `Value`, all else as it is,
and returns the value of the node. Operators without a rule freeze what they touch; `coreprune.model.walk` says so.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

from torch import fx

from coreprune.model.axes import Block, Value, trimmed
from coreprune.model.walk import Walk

__all__ = ["RULES", "Args", "Rule", "argument", "aten", "channels", "name_of", "on_axis", "rule"]

Args = Sequence[Any]
Rule = Callable[[Walk, fx.Node, Args, dict[str, Any]], Any]

#: Every rule by the name of its operator. A new one is one function under `rule`.
RULES: dict[str, Rule] = {}


def rule(*names: str) -> Callable[[Rule], Rule]:
    """Enter a rule under the full names of its operators.

    Args:
        names: with their namespace, and without an overload, such as "aten.relu".

    Example:
        >>> @rule("mine.twice")
        ... def twice(walk, node, args, kwargs):
        ...     return walk.elementwise(args[0].shape, args)
        >>> RULES.pop("mine.twice") is twice
        True
    """

    def enter(function: Rule) -> Rule:
        RULES.update(dict.fromkeys(names, function))
        return function

    return enter


def aten(words: str) -> Callable[[Rule], Rule]:
    """Enter a rule under many names of ATen operators, written one after the other."""
    return rule(*(f"aten.{word}" for word in words.split()))


def argument(args: Args, kwargs: dict[str, Any], at: int, name: str, default: Any = None) -> Any:
    """An argument that was given by place or by name."""
    return args[at] if len(args) > at else kwargs.get(name, default)


def name_of(node: fx.Node) -> str:
    """The operator's name without its namespace and overload."""
    return str(node.target).split(".")[-2]


def on_axis(axis: int, ids: Any) -> tuple[Block, ...]:
    """Labels along one axis, if it has several entries."""
    block = trimmed(Block((axis,), ids))
    return () if block is None else (block,)


def channels(walk: Walk, x: Value, parameters: Args, axis: int = 1) -> None:
    """Each channel has its own entry in the parameters."""
    block = x.at(axis) if len(x.shape) > 1 else None
    for value in parameters:
        if isinstance(value, Value):
            own = value.at(0)
            if block is not None and own is not None and block.axes == (axis % len(x.shape),):
                walk.labels.couple(block.ids, own.ids)
            else:
                walk.freeze([value], "belongs to channels that are not cut")
                walk.pin(x, [axis], "each position has a parameter of its own")

"""Which nodes of a graph are run when, where not all of its values are asked for at once."""

from __future__ import annotations

import operator
from collections.abc import Sequence
from typing import Any

from torch import fx

from coreprune.engine.double import aliases, written

__all__ = ["ends_of", "scheduled", "written_into"]


def scheduled(graph: fx.Graph, wanted: Sequence[Sequence[str]]) -> list[list[fx.Node]]:
    """For every call, the nodes that it needs and none before did."""
    nodes, before = list(graph.nodes), _before(graph)
    by_name = {node.name: node for node in nodes}
    done: set[fx.Node] = set()
    result = []
    for i, names in enumerate(wanted):
        needed = {node for node in nodes if node.op == "placeholder"} if i == 0 else set[fx.Node]()
        waiting = [by_name[name] for name in names]
        while waiting:
            node = waiting.pop()
            if node not in done and node not in needed:
                needed.add(node)
                waiting += before[node]
        result.append([node for node in nodes if node in needed])
        done |= needed
    return result


def _before(graph: fx.Graph) -> dict[fx.Node, set[fx.Node]]:
    """What has to be run before every node: its inputs, and where the code writes into a value, in the code's order.

    What reads a value, or a view of it, comes behind the last write into it; a write, behind all that read before it.
    """
    wrote: dict[fx.Node, fx.Node] = {}
    readers: dict[fx.Node, set[fx.Node]] = {}
    result = {}
    for node in graph.nodes:
        read = {_source(value) for value in node.all_input_nodes}
        result[node] = {*node.all_input_nodes, *(wrote[value] for value in read if value in wrote)}
        for value in _targets(node):
            result[node] |= readers.pop(value, set())
            wrote[value] = node
        for value in read:
            readers.setdefault(value, set()).add(node)
    return result


def _targets(node: fx.Node) -> set[fx.Node]:
    """The nodes in whose memory a node writes."""
    values = {_source(node.args[i]) for i in written(node.target) if i < len(node.args)}
    return {value for value in values if isinstance(value, fx.Node)}


def _source(value: Any) -> Any:
    """The node whose memory a node's value is."""
    while isinstance(value, fx.Node) and (value.target is operator.getitem or aliases(value.target)):
        value = value.args[0]
    return value


def ends_of(nodes: Sequence[fx.Node]) -> dict[fx.Node, list[fx.Node]]:
    """For every node, the values that no node behind it reads, in this order."""
    last = {node: node for node in nodes} | {a: node for node in nodes for a in node.all_input_nodes}
    result: dict[fx.Node, list[fx.Node]] = {}
    for a, node in last.items():
        result.setdefault(node, []).append(a)
    return result


def written_into(graph: fx.Graph) -> set[str]:
    """Nodes whose values the code writes into, directly or through a view."""
    return {value.name for node in graph.nodes for value in _targets(node)}

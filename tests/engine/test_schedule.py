"""Nodes that are run in parts, in every order that may be asked for: values are those of the code run at once."""

from __future__ import annotations

import operator
from itertools import permutations

import pytest
import torch
from torch import Tensor, fx
from torch.fx.experimental.proxy_tensor import make_fx

from coreprune.engine.schedule import ends_of, scheduled, written_into


def writes(x: Tensor) -> tuple[Tensor, ...]:
    """Reads a value before, between and after two writes through a view of it; other memory has no part in it."""
    a, other = x * 2, x.sin()
    early = a.sum(1)
    view = a[:, 1:]
    view.add_(1.0)
    between = a * other
    view.select(1, 0).mul_(x[:, 0])
    return early, between, a + 1, other.exp()


def parts(x: Tensor) -> tuple[Tensor, ...]:
    """Writes into one of the pieces that a split gives."""
    a = x + 1
    early = a.cos()
    first, _ = a.split(2, dim=1)
    first.zero_()
    return early, a.exp(), x - 1


@pytest.fixture(params=[writes, parts], ids=["views", "pieces"])
def case(request):
    x = torch.randn(3, 4, generator=torch.Generator().manual_seed(0))
    graph = make_fx(request.param)(x)
    (output,) = (node for node in graph.graph.nodes if node.op == "output")
    return graph, x, [node.name for node in output.args[0]], request.param(x.clone())


def found(module: fx.GraphModule, x: Tensor, wanted: list[list[str]]) -> dict[str, Tensor]:
    runner = fx.Interpreter(module)
    runner.env, runner.args_iter = {}, iter([x.clone()])
    values = {}
    for nodes, names in zip(scheduled(module.graph, wanted), wanted, strict=True):
        for node in nodes:
            runner.env[node] = runner.run_node(node)
        values |= {node.name: value for node, value in runner.env.items() if node.name in names}
    return values


def test_every_order_gives_the_values_of_the_code(case):
    module, x, names, outputs = case
    for order in permutations(range(len(names))):
        values = found(module, x, [[names[i]] for i in order])
        for name, expected in zip(names, outputs, strict=True):
            assert torch.equal(values[name], expected), (order, name)


def test_nothing_is_run_twice_or_without_need(case):
    module, _, names, _ = case
    chunks = scheduled(module.graph, [[names[-1]], names])
    flat = [node for nodes in chunks for node in nodes]
    assert len(flat) == len(set(flat))
    assert len(chunks[0]) <= 3  # the input, at most one node between, and the value
    assert not any(written_into(module.graph) & {node.name for node in nodes} for nodes in chunks[:1])


def test_a_value_ends_with_its_last_reader(case):
    module, *_ = case
    nodes = list(module.graph.nodes)
    for end, values in ends_of(nodes).items():
        for value in values:
            assert nodes.index(end) == max(map(nodes.index, (value, *value.users)))


def test_getting_a_piece_is_no_copy():
    module = make_fx(parts)(torch.randn(3, 4))
    assert any(node.target is operator.getitem for node in module.graph.nodes)
    assert written_into(module.graph) == {"add"}

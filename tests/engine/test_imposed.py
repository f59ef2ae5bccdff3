"""What norm layers give under their own prior, against what is known of it exactly, and what it says of the network."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
import torch
from helpers import seeded
from test_inputs import images, llama
from torch import Tensor, nn
from torch.nn import functional as F

import coreprune as cp
from coreprune.engine.imposed import imposed, vectors
from coreprune.engine.inputs import forced, inputs, settled
from coreprune.engine.outputs import at_hand, held_out
from coreprune.engine.runner import run
from coreprune.errors import InvalidInputError
from coreprune.model.capture import Captured, capture
from coreprune.model.site import Tap
from coreprune.model.tensors import tensors_of
from coreprune.priors.normlayer import NormLayer

WIDTH = 12


class Block(nn.Module):
    """A norm of one sort, and two layers behind it beside a residual stream."""

    def __init__(self, how: str) -> None:
        super().__init__()
        self.how, self.embed = how, nn.Linear(5, WIDTH)
        self.gamma, self.beta = nn.Parameter(torch.empty(WIDTH)), nn.Parameter(torch.empty(WIDTH))
        self.a, self.b, self.c = nn.Linear(WIDTH, 16), nn.Linear(16, WIDTH), nn.Linear(WIDTH, 3)

    def norm(self, x: Tensor) -> Tensor:
        if self.how == "layer":
            return F.layer_norm(x, (WIDTH,), self.gamma, self.beta)
        if self.how == "rms":
            return F.rms_norm(x, (WIDTH,), self.gamma, eps=1e-6)
        square = {"pow": lambda: x.pow(2), "product": lambda: x * x, "square": lambda: torch.square(x)}[self.how]()
        return self.gamma * (x * torch.rsqrt(square.mean(-1, keepdim=True) + 1e-6))

    def forward(self, x: Tensor) -> Tensor:
        h = self.embed(x)
        return self.c(h + self.b(torch.relu(self.a(self.norm(h)))))


HOWS = ["layer", "rms", "pow", "product", "square"]


def block(how: str) -> Block:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        made = Block(how).double().eval()
    with torch.no_grad():
        made.gamma.copy_(torch.linspace(-1, 2, WIDTH))
        made.beta.copy_(torch.randn(WIDTH, generator=seeded(1)))
    return made


def seen(captured: Captured, model: nn.Module, weight: str, *batches: Any) -> list[Tensor]:
    """What the map with a weight gets in a run of the graph."""
    name = next(p for p, state in captured.states.items() if state == weight)
    node = next(n for n in captured.graph.graph.nodes if name in [a.name for a in n.all_input_nodes])
    operand = next(a.name for a in node.all_input_nodes if a.name not in captured.states)
    got: list[Tensor] = []
    tap = Tap(0, node.name, operand, -1, torch.arange(1).view(1, 1, 1))
    for batch in batches:
        run(captured, tensors_of(model), batch, taps=[tap], hook=lambda tap, value: got.append(value.clone()))
    return got


def call(*shape: int, seed: int = 0) -> Any:
    return (5 + 3 * torch.randn(*shape, 5, generator=seeded(seed)).double(),), {}


# ---------------------------------------------------------------- the law


@pytest.mark.parametrize("how", HOWS)
def test_outputs_of_a_norm_have_its_mean_and_second_moment_and_lie_on_its_ellipsoid(how):
    model = block(how)
    captured = imposed(capture(model, call(4, 7)[0]), 0)
    y = seen(captured, model, "a.weight", call(3000, 7))[0].flatten(0, 1)
    beta = model.beta.detach() if how == "layer" else torch.zeros(WIDTH).double()
    whitened = (y - beta) / model.gamma.detach()
    n = len(y)
    torch.testing.assert_close((whitened**2).sum(1), torch.full((n,), WIDTH).double(), rtol=1e-3, atol=0)
    assert float(whitened.mean(0).abs().max()) < 5 / n**0.5
    assert float((whitened**2).mean(0).sub(1).abs().max()) < 5 * 2**0.5 / n**0.5
    C = whitened.T @ whitened / n  # all directions alike; a LayerNorm leaves out the mean over features
    expected = torch.eye(WIDTH).double()
    if how == "layer":
        expected = (expected - 1 / WIDTH) * WIDTH / (WIDTH - 1)
    assert float((C - expected).abs().max()) < 6 / n**0.5


@pytest.mark.parametrize("how", HOWS)
def test_nothing_but_what_is_normalised_is_changed(how):
    """The residual stream is that of the inputs, and what is added to it that of what the norm gives."""
    model = block(how)
    captured = capture(model, call(4, 7)[0])
    names = [n.name for n in captured.graph.graph.nodes]
    y, end = (seen(imposed(captured, 0), model, f"{name}.weight", call(4, 7))[0] for name in "ac")
    with torch.no_grad():
        stream = model.embed(call(4, 7)[0][0])
        torch.testing.assert_close(end, stream + model.b(torch.relu(model.a(y))))
        torch.testing.assert_close(run(captured, tensors_of(model), call(4, 7))[0], model(call(4, 7)[0][0]))
    assert [n.name for n in captured.graph.graph.nodes] == names  # the graph itself is as it was
    assert [n.name for n in imposed(captured, 0).graph.graph.nodes if not n.name.endswith("_drawn")] == names


def test_every_run_draws_anew_and_the_seed_decides():
    model = block("rms")
    captured = capture(model, call(4, 7)[0])
    batches = call(4, 7), call(4, 7)
    one, again, other = (seen(imposed(captured, s), model, "a.weight", *batches) for s in (0, 0, 1))
    assert torch.equal(one[0], again[0]) and torch.equal(one[1], again[1])
    assert not torch.equal(one[0], one[1]) and not torch.equal(one[0], other[0])


def test_a_gate_and_what_it_gates_get_the_same_and_every_norm_its_own():
    model = llama()
    ids = {"input_ids": torch.zeros(2, 6, dtype=torch.long), "use_cache": False}
    captured = imposed(capture(model, ids), 0)
    drawn = [n for n in captured.graph.graph.nodes if n.name.endswith("_drawn")]
    assert len(drawn) == 3  # before attention, before the feed-forward layer, and at the end
    gate, up, query = (
        next(n for n in captured.graph.graph.nodes if any(f"{name}_proj" in a.name for a in n.all_input_nodes))
        for name in ("gate", "up", "q")
    )
    assert gate.args[0] is up.args[0] and query.args[0] is not gate.args[0]


def test_a_sites_moments_are_those_of_units_behind_the_norm():
    """Against a plain draw: the energy of what the reader makes of ReLU(A y + a)."""
    model = block("layer").float()
    plan = cp.plan(model, call(4, 7)[0][0].float(), units={"a": 8}, prior=NormLayer(40_000))
    z = torch.randn(200_000, WIDTH, generator=seeded(3))
    with torch.no_grad():
        h = model.a(model.norm(z)).relu().double() @ model.b.weight.double().T
    expected = float(h.var(0, correction=0).sum())
    assert abs(plan.cuts[0].evidence["output_variance"] / expected - 1) < 0.03
    noise = cp.plan(model, call(4, 7)[0][0].float(), units={"a": 8}, prior="noise")
    assert abs(noise.cuts[0].evidence["output_variance"] / expected - 1) > 0.1
    assert plan.recipe["prior"] == f"{NormLayer(40_000).said}, in the dense network"
    assert plan.recipe["data_used"] is False


# ---------------------------------------------------------------- how many, and where


def test_each_norm_gives_as_many_vectors_as_are_asked():
    model = block("layer")
    captured = capture(model, call(4, 7)[0])
    assert vectors(captured) == 7 and vectors(capture(images(), torch.zeros(2, 3, 8, 8))) == 1
    law, example = settled(NormLayer(1000), model, captured, 0)
    assert example is None and forced(law) and not law.data_used
    got = sum(len(y.flatten(0, -2)) for y in seen(captured, model, "a.weight", *inputs(captured, law, 0)))
    assert 1000 <= got <= 1100


@pytest.mark.parametrize("name", ["BertModel", "LlamaForCausalLM"])
def test_language_models_are_cut_on_it(name):
    from test_inputs import bert

    model = bert() if name == "BertModel" else llama()
    ids = {"input_ids": torch.zeros(2, 6, dtype=torch.long)} | ({} if name == "BertModel" else {"use_cache": False})
    for asked in ({"remove": {"*": 0.5}}, {"remove": 0.1}):
        one, again = (cp.plan(model, ids, prior=NormLayer(600), **asked) for _ in range(2))
        assert one.recipe["prior"].startswith("all directions alike at every LayerNorm and RMSNorm (600 vectors")
        assert [c.kept.tolist() for c in one.cuts] == [c.kept.tolist() for c in again.cuts]
    cp.apply(model, one)


def test_it_is_of_no_inputs_so_that_nothing_is_measured_or_trained_on_it():
    model = llama()
    ids = {"input_ids": torch.zeros(2, 6, dtype=torch.long), "use_cache": False}
    captured = capture(model, ids)
    assert held_out(NormLayer(), model, captured, 0) is None and not at_hand(NormLayer(), captured)
    with pytest.raises(InvalidInputError, match="there are no inputs to measure on"):
        cp.plan(model, ids, budget={"divergence": 0.1}, prior=NormLayer(600))
    small = cp.prune(model, ids, remove={"*": 0.5}, prior=NormLayer(600))
    with pytest.raises(InvalidInputError, match="what comes inside a network, and no inputs"):
        cp.distill(small, model, steps=2, prior="norm")


# ---------------------------------------------------------------- refusals


def test_networks_without_such_a_norm_are_told():
    with pytest.raises(InvalidInputError, match="has no LayerNorm or RMSNorm"):
        cp.plan(images(), torch.zeros(4, 3, 8, 8), units={"0": 2}, prior="norm")


def test_blocks_that_were_captured_on_their_own_are_told():
    captured = replace(capture(block("rms"), call(4, 7)[0]), path="blocks.0")
    with pytest.raises(InvalidInputError, match="captured block by block"):
        settled(NormLayer(100), block("rms"), captured, 0)


@pytest.mark.parametrize("samples", [0, -1, 0.5, "many"])
def test_numbers_that_cannot_be_meant_are_refused(samples):
    with pytest.raises(InvalidInputError, match="give one vector at least"):
        settled(NormLayer(samples), block("rms"), capture(block("rms"), call(4, 7)[0]), 0)


def test_a_root_of_something_else_is_no_norm():
    class Other(nn.Module):
        def __init__(self, how: str) -> None:
            super().__init__()
            self.how, self.a, self.b = how, nn.Linear(5, 6), nn.Linear(6, 3)

        def forward(self, x: Tensor) -> Tensor:
            h = self.a(x)
            power, axis = (3, -1) if self.how == "power" else (2, 0)
            return self.b(h * torch.rsqrt(h.pow(power).abs().mean(axis, keepdim=True) + 1e-6))

    for how in ("power", "axis"):
        model = Other(how).eval()
        with pytest.raises(InvalidInputError, match="has no LayerNorm or RMSNorm"):
            imposed(capture(model, torch.randn(4, 5, generator=seeded(0))), 0)

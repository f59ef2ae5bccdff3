"""What all cuts do to the outputs: the figures against plain loops, held-out inputs, and budgets that they drive."""

from __future__ import annotations

import math

import pytest
import torch
from torch import nn

import coreprune as cp
from coreprune.engine import outputs
from coreprune.engine.driven import figure
from coreprune.engine.outputs import MEASURES, Outputs, compared
from coreprune.errors import InvalidInputError
from coreprune.report.text import outputs_text

IMAGE = torch.zeros(2, 3, 9, 9)


class Gives(nn.Module):
    """Puts out what it was made with, batch after batch."""

    def __init__(self, values):
        super().__init__()
        self.values, self.turn = values, -1

    def forward(self, x):
        self.turn += 1
        return self.values[self.turn]


def conv(norm=nn.BatchNorm2d):
    torch.manual_seed(0)
    return nn.Sequential(
        nn.Conv2d(3, 12, 3), norm(12), nn.ReLU(), nn.Conv2d(12, 16, 3), nn.ReLU(),
        nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(16, 5),
    ).eval()  # fmt: skip


def bare():
    return conv(nn.Identity)


class Speaks(nn.Module):
    """Predicts the next of 11 tokens from each one alone."""

    def __init__(self):
        super().__init__()
        torch.manual_seed(1)
        self.table, self.up, self.down = nn.Embedding(11, 8), nn.Linear(8, 24), nn.Linear(24, 11)

    def forward(self, ids):
        return self.down(torch.relu(self.up(self.table(ids))))


def plain(pairs):
    """The figures, number by number."""
    divergence, cosines, top, values = [], [], 0.0, []
    for y, z in pairs:
        for a, b in zip(y.reshape(-1, y.shape[-1]).tolist(), z.reshape(-1, z.shape[-1]).tolist(), strict=True):
            p, q = ([math.exp(v) / sum(math.exp(w) for w in row) for v in row] for row in (a, b))
            divergence.append(sum(s * math.log(s / t) for s, t in zip(p, q, strict=True)))
            cosines.append(sum(s * t for s, t in zip(a, b, strict=True)) / math.hypot(*a) / math.hypot(*b))
            top += sum((s - t) ** 2 for s, t in zip(a, b, strict=True))
            values.append(a)
    means = [sum(column) / len(column) for column in zip(*values, strict=True)]
    bottom = sum((v - mean) ** 2 for row in values for v, mean in zip(row, means, strict=True))
    return sum(divergence) / len(divergence), sum(cosines) / len(cosines), math.sqrt(top / bottom)


def test_the_figures_are_those_of_plain_loops():
    g = torch.Generator().manual_seed(2)
    pairs = [(torch.randn(2, n, 7, generator=g), torch.randn(2, n, 7, generator=g)) for n in (3, 5)]
    calls = [((torch.zeros(1),), {})] * 2
    found = compared(Gives([y for y, _ in pairs]), Gives([z for _, z in pairs]), calls, {7})
    assert (found.divergence, found.cosine, found.output_error) == pytest.approx(plain(pairs), rel=1e-5)


def test_images_are_one_vector_for_each_input_and_predict_nothing():
    y, z = torch.randn(4, 2, 3, 3), torch.randn(4, 2, 3, 3)
    found = compared(Gives([y]), Gives([z]), [((torch.zeros(1),), {})], {3})
    assert found.cosine == pytest.approx(float(torch.cosine_similarity(y.flatten(1), z.flatten(1)).mean()), rel=1e-5)


def test_what_always_answers_with_the_mean_is_off_by_one_however_far_the_outputs_lie_apart():
    y = torch.randn(50, 3) + torch.tensor([0.0, 100.0, -1000.0])
    found = compared(Gives([y[:20], y[20:]]), Gives([y.mean(0).expand(n, 3) for n in (20, 30)]), [((y,), {})] * 2, ())
    assert found.output_error == pytest.approx(1, rel=1e-4)


def test_the_same_network_differs_by_nothing():
    net = Speaks()
    found = compared(net, net, [((torch.arange(11)[None],), {})], {11})
    assert (found.divergence, found.output_error) == (0.0, 0.0)
    assert found.cosine == pytest.approx(1, abs=1e-6)


def test_networks_are_left_in_their_mode_and_what_has_no_numbers_gives_none():
    class Counts(nn.Module):
        def forward(self, x):
            return x.long()

    net = Counts().train()
    assert compared(net, net, [((torch.zeros(2, 2),), {})], ()) is None
    assert net.training


def test_prune_says_it_on_inputs_that_the_cut_did_not_see():
    net = bare()
    small = cp.prune(net, IMAGE, remove={"0": 0.5}, prior=cp.Gaussian(), seed=3)
    facts = small.plan.recipe["outputs"]
    from coreprune.engine.inputs import drawn
    from coreprune.model.discover import discover

    (captured, *_) = discover(net, IMAGE).graphs
    seen, other = (list(drawn(captured, cp.Gaussian(), 128, seed)) for seed in (3, 4))
    assert not torch.equal(seen[0][0][0], other[0][0][0])
    direct = compared(net, small.model, other, ())
    assert facts["output_error"] == pytest.approx(direct.output_error, rel=1e-5)
    assert facts["cosine"] == pytest.approx(direct.cosine, rel=1e-5)
    assert facts["output_error"] > 0.01
    assert facts["held_out"] is True
    said = f"outputs: {outputs_text(facts)}"
    assert said in " ".join(small.summary().split())
    assert "with another seed" in small._repr_html_()


def test_it_is_the_same_every_time_and_survives_saving(tmp_path):
    found = [cp.prune(bare(), IMAGE, remove={"0": 0.5}) for _ in range(2)]
    assert found[0].plan.recipe["outputs"] == found[1].plan.recipe["outputs"]
    found[0].save(tmp_path / "small")
    from coreprune.result import read_structure

    assert read_structure(tmp_path / "small")["recipe"]["outputs"] == found[1].plan.recipe["outputs"]


def test_data_are_not_said_to_be_held_out_and_data_that_are_read_once_are_not_read_again():
    batches = [torch.randn(4, 3, 9, 9) for _ in range(3)]
    facts = cp.prune(conv(), IMAGE, remove={"0": 0.5}, data=batches).plan.recipe["outputs"]
    assert (facts["inputs"], facts["held_out"]) == (
        "the first 12 inputs of the data given, which the cut was fitted to",
        False,
    )
    assert "outputs" not in cp.prune(conv(), IMAGE, remove={"0": 0.5}, data=iter(batches)).plan.recipe


@pytest.mark.parametrize("prior", [cp.Gaussian(), cp.Matched(count=8, steps=2)])
def test_what_would_cost_as_much_as_the_cut_or_say_nothing_is_not_measured_unasked(prior):
    asked = cp.prune(conv(), IMAGE, budget={"output_error": 0.9}, prior=prior)
    assert "outputs" in asked.plan.recipe
    assert "outputs" not in cp.prune(conv(), IMAGE, remove={"0": 0.5}, prior=prior).plan.recipe


def test_noise_is_not_run_through_a_large_network_unasked(monkeypatch):
    monkeypatch.setattr(outputs, "LITTLE", 1e4)
    assert "outputs" not in cp.prune(bare(), IMAGE, remove={"0": 0.5}).plan.recipe


def test_predictions_of_tokens_are_compared_in_nats():
    small = cp.prune(Speaks(), torch.zeros(2, 6, dtype=torch.long), remove={"up": 0.5})
    facts = small.plan.recipe["outputs"]
    assert facts["divergence"] > 0
    assert "nats per token" in small.summary()


@pytest.mark.parametrize(
    "kind, limit, made, example",
    [
        ("cosine", 0.999, bare, IMAGE),
        ("output_error", "5%", bare, IMAGE),
        ("divergence", 0.001, Speaks, torch.zeros(2, 6, dtype=torch.long)),
    ],
)
def test_a_budget_is_kept_and_nearly_used_up(kind, limit, made, example):
    small = cp.prune(made(), example, budget={kind: limit}, prior=cp.Gaussian())
    facts = small.plan.recipe["outputs"]
    asked = facts["asked"][kind]
    assert asked == pytest.approx(0.05 if limit == "5%" else limit)
    assert facts[kind] >= asked if MEASURES[kind][1] else facts[kind] <= asked
    assert 0 < small.parameters < small.dense_parameters
    share = small.parameters / small.dense_parameters
    less = cp.prune(made(), example, remove=1 - share + 0.06, prior=cp.Gaussian()).plan.recipe["outputs"][kind]
    assert less < asked if MEASURES[kind][1] else less > asked
    assert "asked" in outputs_text(facts)


def test_more_may_go_where_more_may_be_lost():
    sizes = [cp.prune(conv(), IMAGE, budget={"output_error": e}, prior=cp.Gaussian()).parameters for e in (0.02, 0.2)]
    assert sizes[1] < sizes[0]


def test_what_cannot_be_measured_is_refused():
    with pytest.raises(InvalidInputError, match="ask for 'cosine' or 'output_error'"):
        cp.plan(conv(), IMAGE, budget={"divergence": 0.1}, prior=cp.Gaussian())
    with pytest.raises(InvalidInputError, match="ask for error="):
        cp.plan(nn.Sequential(nn.Linear(4, 8), nn.ReLU(), nn.Linear(8, 2)), budget={"cosine": 0.9})
    with pytest.raises(InvalidInputError, match="not finite"):
        figure(Outputs(None, math.nan, 0.0), "cosine")


def test_text_that_is_left_out_is_no_text_that_is_used(tmp_path):
    class Words:
        def __call__(self, texts, **more):
            one = [[ord(c) for c in t] for t in ([texts] if isinstance(texts, str) else texts)]
            return {"input_ids": one[0] if isinstance(texts, str) else one}

    file = tmp_path / "t.txt"
    file.write_text("".join(chr(65 + i) for i in range(40)))
    law = cp.Text(file, Words(), tokens=24, length=4)
    taken = law.draw(nn.Linear(1, 1))
    left, unseen = law.held_out(nn.Linear(1, 1), 8)
    assert taken.shape == (6, 4)
    assert (left.shape, unseen) == ((2, 4), True)
    assert not set(taken.flatten().tolist()) & set(left.flatten().tolist())
    every = cp.Text(file, Words(), tokens=400, length=4)
    own, unseen = every.held_out(nn.Linear(1, 1), 400)
    assert not unseen
    assert torch.equal(own, every.draw(nn.Linear(1, 1)))

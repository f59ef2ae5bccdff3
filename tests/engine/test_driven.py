"""The largest cut that keeps a limit: against all that could have been found, and with what the first trials teach."""

from __future__ import annotations

import math

import pytest
import torch
from helpers import Branches, seeded
from torch import nn

import coreprune as cp
from coreprune import planning
from coreprune.engine import shares
from coreprune.engine.driven import NEAR, STEPS, Tried, asked_of, between, largest
from coreprune.engine.outputs import Outputs, compared
from coreprune.engine.turning import Turned
from coreprune.errors import InvalidInputError

IMAGE = torch.zeros(2, 3, 9, 9)


def test_the_largest_cut_against_every_share():
    """Against all that it could have found: a limit on a curve that falls as more is left."""
    calls = []

    def widths(share):
        if share < 0.2:
            raise InvalidInputError("too little")
        return {"a": round(1000 * share)}

    def measure(kept):
        calls.append(kept["a"])
        return Outputs(None, 1 - (1 - kept["a"] / 1000) ** 2, (1 - kept["a"] / 1000) ** 2)

    for limit in (0.0001, 0.01, 0.09, 0.3, 0.99):
        calls.clear()
        kept = largest(widths, measure, "output_error", limit)["a"]
        assert len(calls) <= 4  # the loss is a power
        assert (1 - kept / 1000) ** 2 <= limit
        best = min(k for k in range(200, 1001) if (1 - k / 1000) ** 2 <= limit)
        assert best <= kept
        assert kept <= best + 5 or (1 - kept / 1000) ** 2 >= NEAR * limit
        alike = largest(widths, measure, "cosine", 1 - limit)["a"]
        best = min(k for k in range(200, 1001) if 1 - (1 - k / 1000) ** 2 >= 1 - limit)
        assert best <= alike
        assert alike <= best + 5 or (1 - alike / 1000) ** 2 >= NEAR * limit


def test_steep_and_flat_losses_are_found_too():
    """Where the loss is no power: a wall, and one that hardly grows."""
    for wall in (0.011, 0.3, 0.97):
        count = 0

        def measure(kept, wall=wall):
            nonlocal count
            count += 1
            return Outputs(None, 0.0, 1e-3 if 1 - kept["a"] / 1e6 <= wall else 5.0)

        kept = largest(lambda share: {"a": round(1e6 * share)}, measure, "output_error", 0.5)["a"]
        assert wall - 0.02 <= 1 - kept / 1e6 <= wall
        assert count <= STEPS
    flat = largest(lambda s: {"a": round(1e6 * s)}, lambda k: Outputs(None, 1.0, 0.1), "output_error", 0.5)["a"]
    assert flat < 0.02 * 1e6


@pytest.mark.parametrize(
    "budget, why",
    [
        ({"divergence": "much"}, "is not a number"),
        ({"divergence": -1}, "positive"),
        ({"cosine": 1.0}, "below 1"),
        ({"cosine": True}, "positive"),
        ({"cosine": 0.9, "params": "50%"}, "2 entries"),
    ],
)
def test_budgets_that_cannot_be_meant(budget, why):
    with pytest.raises(InvalidInputError, match=why):
        asked_of(budget)


def squares(kept: dict[str, int], scale: float) -> Outputs:
    return Outputs(None, None, scale * (1 - kept["a"] / 1000) ** 2)


@pytest.mark.parametrize("limit", [0.0001, 0.01, 0.09, 0.3, 0.9])
def test_what_was_too_much_is_tried_again_when_the_budget_is_shared_out_better(limit):
    """The same share loses a tenth once two trials have taught how to share out."""
    taught: list[int] = []
    scales: dict[int, float] = {}

    def measure(kept):
        scales[kept["a"]] = 10.0 if len(taught) < 2 else 1.0
        return squares(kept, scales[kept["a"]])

    kept = largest(
        lambda share: {"a": round(1000 * share)}, measure, "output_error", limit, lambda kept: taught.append(kept["a"])
    )["a"]
    assert len(taught) == 2
    assert len(scales) <= STEPS
    loss = scales[kept] * (1 - kept / 1000) ** 2
    assert loss <= limit
    best = min(k for k in range(1001) if (1 - k / 1000) ** 2 <= limit)
    assert kept <= best + 5 or loss >= NEAR * limit


def test_a_limit_that_every_trial_breaks_is_not_crept_up_on():
    """Losses that grow as a root: the next trial is where two trials together say, not where one of them would."""
    counts = []
    for limit in (0.1, 0.2, 0.3):
        tried: list[float] = []

        def measure(kept, tried=tried):
            tried.append(kept["a"])
            return Outputs(None, None, (1 - kept["a"] / 1e6) ** 0.6)

        kept = largest(lambda share: {"a": round(1e6 * share)}, measure, "output_error", limit)["a"]
        assert (1 - kept / 1e6) ** 0.6 <= limit
        assert kept < 1e6
        counts.append(len(tried))
    assert max(counts) <= 5


def test_what_was_tried_last_says_where_to_go_when_the_ends_say_nothing():
    ends = Tried(0.0, 0.0), Tried(1.0, math.inf)
    assert between(*ends, 0.09, [Tried(0.2, 0.04)]) == pytest.approx(0.3)
    assert between(*ends, 0.2, [Tried(0.9, 0.9), Tried(0.5, 0.5)]) == pytest.approx(0.2)
    assert between(*ends, 0.2) == 0.5
    assert between(*ends, 0.2, [Tried(0.5, 0.5), Tried(0.5, 0.3)]) == pytest.approx(0.5 * (0.2 / 0.3) ** 0.5)


class TestLearning:
    """Two hidden layers of which one says next to nothing: what curves of single sites do not know."""

    @staticmethod
    def pruned(**more):
        torch.manual_seed(2)
        return cp.prune(Branches(0.03).eval(), torch.randn(8, 6), budget={"output_error": 0.1}, **more)

    def test_less_is_kept_for_the_same_limit(self, monkeypatch):
        learnt = self.pruned()
        monkeypatch.setattr(planning, "_balances", lambda *_: False)
        plain = self.pruned()
        assert all(one.plan.recipe["outputs"]["output_error"] <= 0.1 for one in (learnt, plain))
        assert learnt.plan.kept["b"] < plain.plan.kept["b"]
        assert learnt.parameters < plain.parameters

    def test_where_alike_sites_get_one_width_nothing_is_learnt(self, monkeypatch):
        monkeypatch.setattr(shares, "lost", None)
        assert self.pruned(uniform=True).plan.recipe["outputs"]["output_error"] <= 0.1

    def test_curves_alone_decide_where_no_gradient_comes_through(self, monkeypatch):
        def refuses(*_, **__):
            raise NotImplementedError("derivative is not implemented")

        monkeypatch.setattr(shares, "lost", refuses)
        found = self.pruned()
        assert found.plan.recipe["outputs"]["output_error"] <= 0.1
        assert found.parameters < found.dense_parameters

    def test_every_trial_is_told_of(self):
        told: list[tuple[int, int, str]] = []
        small = self.pruned(progress=lambda *one: told.append(one))
        trials = [one for one in told if "trial of" in one[2]]
        assert len(trials) == small.plan.recipe["outputs"]["tried"]
        assert (STEPS, STEPS, "") in told


class TestTurning:
    """Units that turn after the trials."""

    @staticmethod
    def made():
        torch.manual_seed(0)
        return nn.Sequential(
            nn.Conv2d(3, 12, 3), nn.ReLU(), nn.Conv2d(12, 16, 3), nn.ReLU(),
            nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(16, 5),
        ).eval()  # fmt: skip

    def both(self):
        asked = {"budget": {"output_error": 0.3}, "data": self.batches()}
        return (cp.prune(self.made(), IMAGE, method=method, **asked) for method in ("kernel", "refined"))

    @staticmethod
    def batches():
        return [torch.randn(128, 3, 9, 9, generator=seeded(i)) for i in range(8)]

    def test_what_is_said_is_measured_of_the_network_that_turned(self):
        trials, small = self.both()
        assert small.plan.kept == trials.plan.kept
        calls = [((self.batches()[0],), {})]
        said = small.plan.recipe["outputs"]
        assert said["output_error"] == pytest.approx(
            compared(self.made(), small.model, calls, ()).output_error, rel=1e-4
        )
        assert said["output_error"] < trials.plan.recipe["outputs"]["output_error"]
        assert said["asked"] == {"output_error": 0.3}

    def test_what_is_farther_after_it_turned_is_not_taken(self, monkeypatch):
        def astray(found, tensors, cuts, *_, **__):
            last = next(name for name in tensors if name.endswith("6.bias"))
            return Turned(cuts, {last: torch.ones(5)})

        monkeypatch.setattr(planning, "turned", astray)
        trials, small = self.both()
        assert small.plan.recipe["outputs"] == trials.plan.recipe["outputs"]
        for a, b in zip(trials.model.parameters(), small.model.parameters(), strict=True):
            assert torch.equal(a, b)

"""Latency as a cost: what a table means, how a budget keeps to it, and that the same table gives the same plan."""

from __future__ import annotations

import json
import math
from itertools import product

import pytest
import torch
from helpers import lenet_like
from test_allocate import FOUND, curves
from torch import nn

import coreprune as cp
from coreprune.allocation import allocate
from coreprune.engine import latency
from coreprune.engine.latency import measured_table, table_of
from coreprune.errors import InvalidInputError
from coreprune.model.discover import discover
from coreprune.report.recipe import python_call

#: sites "0" with 16 units and "2" with 12; 6 inputs and 4 outputs
TABLE = {"seconds": 0.010, "tensors": {"0.weight": 0.004, "2.weight": 0.003, "4.weight": 0.001}}


def seconds(a, b):
    """The model of a table, written out."""
    return 0.002 + 0.004 * (a * 6) / (16 * 6) + 0.003 * (b * a) / (12 * 16) + 0.001 * (4 * b) / (4 * 12)


def test_the_model_is_the_whole_at_full_width():
    assert seconds(16, 12) == pytest.approx(TABLE["seconds"])


@pytest.mark.parametrize("seed", range(4))
@pytest.mark.parametrize("asked, limit", [("80%", 0.008), ("50%", 0.005), (0.0065, 0.0065)])
def test_a_budget_is_kept_and_near_the_best(seed, asked, limit):
    errors = curves(seed)
    kept = allocate(FOUND, errors, {"latency": asked, "table": TABLE})
    assert seconds(kept["0"], kept["2"]) <= limit * (1 + 1e-9)

    def lost(a, b):
        return float(errors["0"][a] + errors["2"][b])

    best = min(lost(a, b) for a, b in product(range(1, 17), range(1, 13)) if seconds(a, b) <= limit)
    assert lost(kept["0"], kept["2"]) <= 1.1 * best + 1e-12


def test_what_costs_no_time_is_not_cut_for_it():
    table = {"seconds": 0.01, "tensors": {"0.weight": 0.009, "2.weight": 0.0}}
    kept = allocate(FOUND, curves(0), {"latency": "60%", "table": table})
    assert kept["2"] == 12
    assert kept["0"] < 16


def test_what_no_cut_makes_faster_is_refused_with_what_can_be_had():
    with pytest.raises(InvalidInputError, match="too little was left"):
        allocate(FOUND, curves(0), {"latency": "20%", "table": TABLE})  # 0.002 of 0.010 does not shrink


def test_the_same_table_gives_the_same_plan_and_is_written_down(tmp_path):
    net = lenet_like()
    file = tmp_path / "table.json"
    file.write_text(json.dumps(TABLE))
    plans = [cp.plan(net, budget={"latency": "60%", "table": one}) for one in (TABLE, file, str(file))]
    assert len({json.dumps(plan.kept) for plan in plans}) == 1
    assert plans[0].recipe["budget"] == {"latency": "60%", "table": TABLE}
    plans[0].save(tmp_path / "plan")
    again = cp.plan(net, budget={"latency": "60%", "table": tmp_path / "plan" / "plan.json"})
    assert again.kept == plans[0].kept
    assert again.recipe == plans[0].recipe
    small = cp.apply(net, plans[0])
    small.save(tmp_path / "small")
    from_result = cp.plan(net, budget={"latency": "60%", "table": tmp_path / "small" / "structure.json"})
    assert from_result.kept == plans[0].kept
    assert "'table': 'structure.json'" in python_call(plans[0].recipe)


def test_a_table_is_measured_where_none_is_given():
    net = nn.Sequential(nn.Linear(64, 256), nn.ReLU(), nn.Linear(256, 256), nn.ReLU(), nn.Linear(256, 8)).eval()
    plan = cp.plan(net, torch.zeros(64, 64), budget={"latency": "99%"})
    table = plan.recipe["budget"]["table"]
    assert set(table["tensors"]) == {"0.weight", "2.weight", "4.weight"}
    assert table["threads"] == torch.get_num_threads()
    assert table["runs"] >= 5
    assert 0 < sum(table["tensors"].values()) <= table["seconds"] * (1 + 1e-6)
    assert "fresh" not in table
    assert cp.plan(net, torch.zeros(64, 64), budget={"latency": "99%", "table": table}).kept == plan.kept


class Clocked(nn.Module):
    """Two maps; on a clock that is moved by hand, the time of each is that of its entries, and a constant."""

    def __init__(self, clock):
        super().__init__()
        self.up, self.act, self.down = nn.Linear(4, 8), nn.ReLU(), nn.Linear(8, 4)
        self.clock = clock

    def forward(self, x):
        self.clock[0] += 0.5
        x = self.act(self.up(x))
        self.clock[0] += 1.0 + 0.01 * self.up.weight.numel()
        x = self.down(x)
        self.clock[0] += 0.03 * self.down.weight.numel()
        return x


def test_slopes_are_found_on_a_network_whose_times_are_known(monkeypatch):
    now = [0.0]
    net = Clocked(now)
    found = discover(net, torch.zeros(2, 4))
    now[0] = 0.0
    monkeypatch.setattr(latency.time, "perf_counter", lambda: now[0])
    monkeypatch.setattr(latency, "spared_copy", lambda model, names: _copied(model, now))
    table = measured_table(net, found, ((torch.zeros(2, 4),), {}), seconds=0)
    assert table["seconds"] == pytest.approx(0.5 + 1.0 + 0.32 + 0.96)
    assert table["tensors"] == pytest.approx({"up.weight": 0.32, "down.weight": 0.96}, rel=1e-5)


@pytest.mark.parametrize("wins", [(0.5, 0.5, 0.5), (0.1, 1.0, 1.0), (1.0, 0.7, 0.0)])
def test_a_table_is_corrected_until_what_was_won_is_what_it_promised(monkeypatch, wins):
    """A network of which only a part of the promised time can be won, of each tensor another one."""
    net = lenet_like()
    won = {name: share * slope for share, (name, slope) in zip(wins, TABLE["tensors"].items(), strict=True)}
    dense = {name: t.numel() for name, t in net.named_parameters()}

    def compared(model, small, owners, arguments):
        left = {name: t.numel() / dense[name] for name, t in small.named_parameters()}
        saved = {name: slope * (1 - left[name]) for name, slope in won.items()}
        return 1 - sum(saved.values()) / TABLE["seconds"], saved

    def widths(table):
        return allocate(FOUND, curves(0), {"latency": "75%", "table": table})

    monkeypatch.setattr(latency, "_compared", compared)
    kept, table = latency.fitted(net, FOUND, ((), {}), {**TABLE, "fresh": True}, widths)
    assert kept == widths(table)
    assert "fresh" not in table
    a, b = kept["0"] / 16, kept["2"] / 12
    saved = sum(slope * (1 - left) for slope, left in zip(won.values(), (a, a * b, b), strict=True))
    assert 0.25 - latency.CLOSE <= saved / TABLE["seconds"] <= 0.25 + latency.CLOSE + 0.06  # a unit is 6 % of the time
    for name, slope in won.items():
        assert abs(table["tensors"][name] - slope) <= abs(TABLE["tensors"][name] - slope) + 1e-9


def test_where_no_cut_wins_enough_what_came_nearest_is_taken(monkeypatch):
    net = lenet_like()
    monkeypatch.setattr(latency, "_compared", lambda *_: (0.95, {"0.weight": 0.0005, "2.weight": 0.0, "4.weight": 0.0}))

    def widths(table):
        return allocate(FOUND, curves(0), {"latency": "75%", "table": table})

    kept, table = latency.fitted(net, FOUND, ((), {}), {**TABLE, "fresh": True}, widths)
    assert kept == widths(table)
    with pytest.raises(InvalidInputError, match="too little was left"):
        latency.fitted(net, FOUND, ((), {}), {**TABLE, "tensors": {"0.weight": 1e-6}}, widths)


def test_both_networks_are_timed_on_one_clock(monkeypatch):
    """A clock that is moved by hand: what is saved is that of the entries that are gone, and the ratio has the rest."""
    now = [0.0]
    net, less = Clocked(now), Clocked(now)
    less.up, less.down = nn.Linear(4, 2), nn.Linear(2, 4)
    found = discover(net, torch.zeros(2, 4))
    monkeypatch.setattr(latency.time, "perf_counter", lambda: now[0])
    monkeypatch.setattr(latency, "SECONDS", 0)
    ratio, saved = latency._compared(net, less, latency._owners(net, found), ((torch.zeros(2, 4),), {}))
    assert saved == pytest.approx({"up.weight": 0.24, "down.weight": 0.72})
    assert ratio == pytest.approx((2.78 - 0.96) / 2.78)


def _copied(model, clock):
    made = Clocked(clock)
    made.load_state_dict(model.state_dict())
    return made


@pytest.mark.parametrize(
    "given, why",
    [
        ({}, "a table of times is"),
        ({"seconds": 1, "tensors": [1]}, "a table of times is"),
        ({"seconds": 1, "tensors": {"9.weight": 1}}, "does not have"),
        ({"seconds": 1, "tensors": {"0.weight": -1}}, "no less than 0"),
        ({"seconds": math.nan, "tensors": {"0.weight": 1}}, "no less than 0"),
        ({"seconds": 1, "tensors": {"0.weight": True}}, "no less than 0"),
        ({"seconds": 1, "tensors": {"0.weight": 2}}, "at most as much"),
        ({"seconds": 1, "tensors": {}}, "more than 0"),
        ("no/such/file.json", "cannot be read"),
        ({"recipe": {"budget": {"params": 1}}}, "a table of times is"),
    ],
)
def test_tables_that_cannot_be_meant(given, why):
    with pytest.raises(InvalidInputError, match=why):
        table_of(given, FOUND)


def test_a_table_alone_is_refused():
    with pytest.raises(InvalidInputError, match="no budget of 'latency'"):
        cp.plan(lenet_like(), budget={"params": "60%", "table": TABLE})

"""Stages take their own time, and no file holds it."""

from __future__ import annotations

import time
from contextlib import suppress

import pytest
import torch
from helpers import lenet_like
from torch import nn

import coreprune as cp
from coreprune.clock import Clock, Timing


@pytest.fixture
def ticks(monkeypatch):
    """A clock that a test moves on by hand."""
    now = [100.0]
    monkeypatch.setattr(time, "perf_counter", lambda: now[0])

    def move(by):
        now[0] += by

    return move


def test_a_stage_within_another_counts_for_itself_alone(ticks):
    clock = Clock()
    ticks(1)
    with clock.stage("a"):
        ticks(2)
        with clock.stage("b"):
            ticks(4)
            clock.wrote(12)
        ticks(8)
    with clock.stage("b"):
        ticks(16)
    ticks(32)
    assert clock.timing() == Timing({"a": 10, "b": 20}, {"b": 12})
    assert clock.timing(rest=True).seconds == {"a": 10, "b": 20, "other": 33}
    assert clock.timing().tokens_per_second == {"b": 0.6}


def test_a_stage_that_fails_ends(ticks):
    clock = Clock()
    with suppress(ValueError), clock.stage("a"), clock.stage("b"):
        ticks(1)
        raise ValueError
    with clock.stage("c"):
        ticks(2)
    assert clock.timing().seconds == {"a": 0, "b": 1, "c": 2}


def test_sums_and_shares():
    both = Timing({"a": 1.0, "b": 2.0}, {"b": 4}) + Timing({"b": 3.0, "c": 2.0}, {"b": 6})
    assert both == Timing({"a": 1.0, "b": 5.0, "c": 2.0}, {"b": 10})
    assert list(both.shares.items()) == [("b", 5 / 8), ("c", 2 / 8), ("a", 1 / 8)]
    assert str(both) == "took 8 s: b 62% (2 tokens/s), c 25%, a 12%"
    assert str(Timing()) == "took no time"
    assert both.to_json()["tokens_per_second"] == {"b": 2.0}


def conv():
    torch.manual_seed(0)
    return nn.Sequential(nn.Conv2d(3, 8, 3), nn.ReLU(), nn.Conv2d(8, 4, 3)).eval()


@pytest.mark.parametrize(
    "made, example, stages",
    [
        (lenet_like, None, {"capturing", "selecting", "cutting", "other"}),
        (
            conv,
            torch.zeros(2, 3, 9, 9),
            {
                "capturing",
                "drawing inputs",
                "observing",
                "selecting",
                "correcting",
                "measuring",
                "cutting",
                "checking",
                "other",
            },
        ),
    ],
)
def test_pruning_tells_its_stages(made, example, stages):
    start = time.perf_counter()
    small = cp.prune(made(), example, remove=0.3)
    spent = time.perf_counter() - start
    assert set(small.timing.seconds) <= stages
    assert stages - {"measuring"} <= set(small.timing.seconds)
    assert 0.5 * spent < small.timing.whole <= spent
    assert sum(small.timing.shares.values()) == pytest.approx(1)
    assert str(small.timing).startswith("took ")


def test_the_same_call_writes_the_same_files(tmp_path):
    """Times differ from run to run, and no file holds one."""
    for name in ("a", "b"):
        net = lenet_like()
        cp.plan(net, remove=0.3).save(tmp_path / name / "plan")
        small = cp.prune(net, remove=0.3)
        assert small.timing.whole > 0
        small.save(tmp_path / name / "small")
    files = sorted(p.relative_to(tmp_path / "a") for p in (tmp_path / "a").rglob("*") if p.is_file())
    assert len(files) == 4
    for file in files:
        assert (tmp_path / "a" / file).read_bytes() == (tmp_path / "b" / file).read_bytes(), file
    assert cp.Plan.load(tmp_path / "a" / "plan").timing == Timing()

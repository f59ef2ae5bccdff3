"""Massive units of networks: found where they were planted, kept, and told; nothing changes where there are none."""

from __future__ import annotations

import json
from dataclasses import replace

import pytest
import torch
from helpers import seeded
from torch import Tensor, nn

import coreprune as cp
from coreprune.engine import cutting
from coreprune.engine.cutting import Job, cut_sites
from coreprune.engine.local import Request
from coreprune.engine.network import decide_network, surveyed
from coreprune.engine.observe import Observed
from coreprune.maths.methods import METHODS
from coreprune.maths.outliers import FACTOR
from coreprune.model.network import discover_network
from coreprune.model.site import Location, Reader, Site
from coreprune.plan import Cut
from coreprune.priors.gaussian import Gaussian
from coreprune.report.card import card
from coreprune.report.text import massive_text

UNITS, PLANTED, TWIN = 40, 17, 23


class Planted(nn.Module):
    """Units that are alike, one that is loud where the first input is above 2, and if asked a quieter copy of it."""

    def __init__(self, *, twin: bool = False, loud: float = 1000.0) -> None:
        super().__init__()
        self.up, self.down, self.norm = nn.Linear(8, UNITS), nn.Linear(UNITS, 6, bias=False), nn.LayerNorm(6)
        with torch.no_grad():
            for part in (self.up.weight, self.up.bias, self.down.weight):
                part.copy_(torch.randn(part.shape, generator=seeded(len(part))) / part.shape[-1] ** 0.5)
            for unit, scale in ((PLANTED, loud), (TWIN, 0.9 * loud))[: 1 + twin]:
                self.up.weight[unit] = torch.eye(8)[0] * scale
                self.up.bias[unit] = -2 * scale
                self.down.weight[:, unit] = self.down.weight[:, PLANTED]

    def forward(self, x: Tensor) -> Tensor:
        return self.norm(self.down(self.up(x).relu()))


def request(method: str = "kernel", **more: bool) -> Request:
    return Request(METHODS[method], Gaussian(), 1.0, 0, **more)


def cut(model: nn.Module, keep: int, how: Request | None = None) -> Cut:
    found = discover_network(model.eval(), torch.zeros(64, 8))
    tensors = {name: t.detach() for name, t in model.state_dict().items()}
    (one,) = decide_network(found, tensors, {"up": keep}, how or request())
    return one


def without(monkeypatch: pytest.MonkeyPatch, module: object = cutting) -> None:
    """Nothing is massive any more."""
    monkeypatch.setattr(module, "massive", lambda energy: torch.zeros(0, dtype=torch.int64))


def test_a_planted_unit_is_found_and_its_share_is_what_the_reader_gets():
    model = Planted().eval()
    known = cut(model, 20).evidence["massive"]
    assert known["units"] == [PLANTED] and known["removed"] == []
    x = torch.randn(200_000, 8, generator=seeded(5))
    with torch.no_grad():
        energy = model.up(x).relu().square().mean(0) * model.down.weight.square().sum(0)
    assert float(energy[PLANTED]) > FACTOR * float(energy.median())
    assert known["share"] == pytest.approx(float(energy[PLANTED] / energy.sum()), rel=0.01)
    assert "massive" not in cut(Planted(loud=3.0), 20).evidence


def test_a_copy_that_a_path_leaves_out_is_kept_too(monkeypatch):
    """The greedy needs but one of the two. Where there is room for one unit, it is the louder one."""
    kept = {keep: cut(Planted(twin=True), keep) for keep in (20, 2, 1)}
    assert all(one.evidence["massive"]["units"] == [PLANTED, TWIN] for one in kept.values())
    assert {PLANTED, TWIN} <= set(kept[20].kept.tolist()) and kept[20].evidence["massive"]["removed"] == []
    assert kept[2].kept.tolist() == [PLANTED, TWIN]
    assert kept[1].kept.tolist() == [PLANTED] and kept[1].evidence["massive"]["removed"] == [TWIN]
    assert all(one.kept.numel() == keep for keep, one in kept.items())
    without(monkeypatch)
    assert len({PLANTED, TWIN} & set(cut(Planted(twin=True), 20).kept.tolist())) == 1


@pytest.mark.parametrize("forward", [False, True])
@pytest.mark.parametrize("keep", [1, 2, 3, 20, 39])
def test_with_a_survey_and_with_a_path_of_its_own_both_stay(keep, forward, monkeypatch):
    if forward:
        monkeypatch.setattr("coreprune.maths.kernel.SMALL", 0)
    model = Planted(twin=True).eval()
    found = discover_network(model, torch.zeros(64, 8))
    tensors = {name: t.detach() for name, t in model.state_dict().items()}
    survey = surveyed(found, tensors, request())
    (ranked,) = decide_network(found, tensors, {"up": keep}, request(), survey)
    (alone,) = decide_network(found, tensors, {"up": keep}, request())
    for one in (ranked, alone):
        assert one.kept.numel() == keep and PLANTED in one.kept.tolist()
        assert TWIN in one.kept.tolist() or keep == 1
    if not forward:  # how many units are added at a time goes by how many are wanted
        assert torch.equal(ranked.kept, alone.kept)
        assert torch.allclose(ranked.coresets[0].mix, alone.coresets[0].mix, atol=1e-6)


def test_all_else_that_stays_is_what_the_path_would_keep_with_less_room(monkeypatch):
    forced = set(cut(Planted(twin=True), 20).kept.tolist())
    without(monkeypatch)
    less = set(cut(Planted(twin=True), 19).kept.tolist())
    assert len(forced - less) == 1 and less < forced and forced - less < {PLANTED, TWIN}


@pytest.mark.parametrize("units", [40, 1100])
@pytest.mark.parametrize("planted", [False, True])
def test_where_a_path_keeps_them_nothing_changes(units, planted, monkeypatch):
    """To the last bit, at every width: with a massive unit that is chosen anyway, and with none."""
    site = Site("s", "linear", units, "identity", (), Location("p", 0), Location("", 0),
                (Reader(Location("w", 1), "c"),))  # fmt: skip
    W = torch.randn(5, units, generator=seeded(1))
    A = torch.randn(units, 2 * units, generator=seeded(2)).double()
    if planted:
        A[3] *= 500
    seen = (Observed(torch.zeros(units).double(), A @ A.T / (2 * units), 10**9),)
    tensors = {"p": torch.ones(units, 2), "w": W, "c": torch.zeros(5)}
    widths = (1, units // 2, units - 1)
    with_it = [cut_sites([Job(site, (), seen, keep)], tensors, request())[0] for keep in widths]
    without(monkeypatch)
    for keep, one in zip(widths, with_it, strict=True):
        (other,) = cut_sites([Job(site, (), seen, keep)], tensors, request())
        assert torch.equal(one.kept, other.kept)
        assert all(torch.equal(getattr(one.coresets[0], k), getattr(other.coresets[0], k)) for k in ("mix", "offset"))
        assert one.evidence.get("massive", {}).get("units") == ([3] if planted else None)
        assert {k: v for k, v in one.evidence.items() if k != "massive"} == other.evidence


def test_a_method_that_removes_one_is_told():
    """Which units a method draws is not changed."""
    told = set()
    for seed in range(6):
        how = {"units": {"up": 20}, "capture": "export", "method": "uniform", "seed": seed}
        small = cp.prune(Planted().eval(), torch.zeros(64, 8), **how)
        (one,) = small.plan.cuts
        stays = PLANTED in one.kept.tolist()
        assert one.evidence["massive"]["removed"] == ([] if stays else [PLANTED])
        words = "all are kept" if stays else f"REMOVED: {PLANTED} of up: measure what the network does without"
        assert words in " ".join(small.summary().split())
        told.add(stays)
    assert told == {True, False}


def test_it_is_told_wherever_results_are_told(tmp_path):
    for loud, there in ((1000.0, True), (3.0, False)):
        small = cp.prune(Planted(loud=loud).eval(), torch.zeros(64, 8), units={"up": 20}, capture="export")
        said = massive_text({c.site.name: c.evidence.get("massive") for c in small.plan.cuts})
        assert bool(said) is there and (
            not there or (said.startswith("1 in 1 site, ") and said.endswith("all are kept"))
        )
        path = small.report(tmp_path / f"{loud}.html")
        row = json.loads(path.with_suffix(".json").read_text())["sites"][0]
        assert row["massive"] == (small.plan.cuts[0].evidence["massive"] if there else None)
        size = dict.fromkeys(("dense_parameters", "dense_bytes", "parameters", "bytes"), 1)
        sites = [{"site": c.site.to_json(), "kept": c.kept.tolist(), "evidence": c.evidence} for c in small.plan.cuts]
        words = card({"recipe": small.plan.recipe, "size": size, "sites": sites}, "Net")
        for where in (path.read_text(), small.summary(), words):
            assert (said in " ".join(where.split())) if there else "assive units" not in where
        small.plan.save(tmp_path / f"plan{loud}")
        assert cp.Plan.load(tmp_path / f"plan{loud}").cuts[0].evidence == small.plan.cuts[0].evidence


def test_a_report_of_a_damaged_result_is_refused(tmp_path):
    small = cp.prune(Planted().eval(), torch.zeros(64, 8), units={"up": 20}, capture="export")
    (one,) = small.plan.cuts
    bad = replace(one, evidence={**one.evidence, "massive": {"units": ["x"], "share": 1, "removed": []}})
    broken = replace(small, plan=replace(small.plan, cuts=(bad,)))
    with pytest.raises(cp.CorepruneError, match="damaged"):
        broken.report(tmp_path / "r.html")

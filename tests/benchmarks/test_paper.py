"""The pieces of benchmarks/paper: the coreset of edges, training side by side, records that grow, tables."""

from __future__ import annotations

import doctest
import importlib
import itertools
import json
import pkgutil
from collections import Counter

import pytest
import torch
from helpers import equal_states, seeded
from torch import nn
from torch.nn import functional as F

import paper
import records
from paper import cifar10, tables
from paper.choice import best
from paper.edges import Sparse, drawn_edges, edges, importance, sparse_bytes
from paper.pictures import moved
from paper.store import Store
from paper.training import LOSSES, Pupil, Schedule, fit


def small(seed=0, d=6, widths=(5, 4, 3)):
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return nn.Sequential(
            nn.Linear(d, widths[0]), nn.ReLU(), nn.Linear(widths[0], widths[1]), nn.ReLU(), nn.Linear(*widths[1:])
        ).eval()


@pytest.mark.parametrize(
    "name", [one.name for one in pkgutil.iter_modules(paper.__path__, "paper.") if one.name != "paper.__main__"]
)
def test_doctests(name):
    found = doctest.testmod(importlib.import_module(name))
    assert found.failed == 0


# ------------------------------------------------------------------------------------------------ the edges' coreset


def test_importance_is_the_largest_share():
    w, a = torch.rand(3, 5, generator=seeded(0)), torch.rand(7, 5, generator=seeded(1))
    found = importance(w, a)
    for i, j in itertools.product(range(3), range(5)):
        shares = [float(w[i, j] * a[x, j] / sum(w[i, k] * a[x, k] for k in range(5))) for x in range(7)]
        assert float(found[i, j]) == pytest.approx(max(shares), rel=1e-5)


def test_edges_that_no_picture_uses_have_no_importance():
    w, a = torch.ones(2, 3), torch.tensor([[0.0, 1.0, 0.0], [0.0, 0.0, 0.0]])
    assert importance(w, a).tolist() == [[0.0, 1.0, 0.0], [0.0, 1.0, 0.0]]


def test_drawn_edges_are_unbiased_by_brute_force():
    """The mean over every possible sequence of draws, each with its probability, is the dense row."""
    w = torch.tensor([[0.5, 2.0, 1.0]], dtype=torch.float64)
    s = importance(w, torch.tensor([[1.0, 0.2, 0.4], [0.1, 0.3, 1.0]], dtype=torch.float64))
    q, m = (s / s.sum())[0], 3
    mean = torch.zeros(3, dtype=torch.float64)
    for sequence in itertools.product(range(3), repeat=m):
        chance = torch.stack([q[j] for j in sequence]).prod()
        count = Counter(sequence)
        mean += chance * torch.tensor([float(w[0, j]) * count[j] / (m * float(q[j])) for j in range(3)])
    torch.testing.assert_close(mean, w[0])
    # and what is drawn is one of those estimators, as often as it should be
    generator = seeded(0)
    drawn = torch.stack([drawn_edges(w, s, torch.tensor([m]), generator)[0] for _ in range(20_000)])
    counts = drawn * m * q / w[0]
    torch.testing.assert_close(counts, counts.round(), atol=1e-9, rtol=0)
    torch.testing.assert_close(counts.sum(1), torch.full((20_000,), 3.0, dtype=torch.float64))
    torch.testing.assert_close(drawn.mean(0), w[0], rtol=0.03, atol=0)


def test_one_draw_has_the_variance_of_the_formula():
    w = torch.rand(1, 6, generator=seeded(2), dtype=torch.float64)
    a = torch.rand(4, 6, generator=seeded(3), dtype=torch.float64)
    s, generator = importance(w, a), seeded(1)
    q, x = (s / s.sum())[0], a[0]
    drawn = torch.stack([drawn_edges(w, s, torch.tensor([5]), generator)[0] for _ in range(20_000)])
    expected = (float(((w[0] * x) ** 2 / q).sum()) - float(w[0] @ x) ** 2) / 5
    assert float((drawn @ x).var()) == pytest.approx(expected, rel=0.05)


@pytest.mark.parametrize("size", [25, 38])
def test_networks_of_edges_have_the_size_asked_for(size):
    net, x = small(), torch.rand(30, 6, generator=seeded(4))
    before = {name: value.clone() for name, value in net.state_dict().items()}
    sizes = []
    for seed in range(200):
        cut = edges(net, x, size, seeded(seed))
        sizes.append(sum(int((m.weight != 0).sum()) for m in cut if isinstance(m, nn.Linear)))
        for old, new in zip(net, cut, strict=True):
            if isinstance(old, nn.Linear):
                assert bool(((new.weight == 0) | (new.weight.sign() == old.weight.sign())).all())
                assert torch.equal(new.bias, old.bias)
    assert sum(sizes) / len(sizes) == pytest.approx(size, rel=0.08)
    assert all(torch.equal(before[name], value) for name, value in net.state_dict().items())


def test_many_edges_are_nearly_the_dense_network():
    net, x = small(), torch.rand(30, 6, generator=seeded(4))
    with pytest.raises(ValueError, match="edges were asked"):
        edges(net, x, 10_000, seeded(0))
    with torch.no_grad():
        near, far = (
            sum(float((edges(net, x, size, seeded(s))(x) - net(x)).norm()) for s in range(20)) for size in (40, 25)
        )
    assert near < 0.4 * far


def test_sparse_networks_compute_the_same():
    net, x = small(), torch.rand(30, 6, generator=seeded(4))
    cut = edges(net, x, 25, seeded(0))
    with torch.no_grad():
        torch.testing.assert_close(Sparse(cut)(x), cut(x))
    kept = sum(int((m.weight != 0).sum()) for m in cut if isinstance(m, nn.Linear))
    assert sparse_bytes(cut) == 6 * kept + 4 * (6 + 5 + 4) + 4 * 12


# ------------------------------------------------------------------------------------------------ training


def test_side_by_side_is_as_alone():
    x, y = torch.rand(64, 784, generator=seeded(0)), torch.randint(0, 3, (64,), generator=seeded(1))
    teacher, how = small(9, 784), Schedule(2, 1e-2, "shifted", batch=16)
    pupils = [Pupil(small(seed, 784), loss) for seed, loss in enumerate(LOSSES)]
    states = [{k: v.clone() for k, v in pupil.model.state_dict().items()} for pupil in pupils]
    together = fit(pupils, teacher, x, y, how, seeded(5))
    for pupil, found, state in zip(pupils, together, states, strict=True):
        (alone,) = fit([pupil], teacher, x, y, how, seeded(5))
        for one, other in zip(found.state_dict().values(), alone.state_dict().values(), strict=True):
            torch.testing.assert_close(one, other, rtol=1e-3, atol=1e-4)
        assert all(torch.equal(state[k], v) for k, v in pupil.model.state_dict().items())
        assert not equal_states(pupil.model, found)


def test_training_is_adam_on_the_mean_loss():
    """Against a plain loop with torch's own loss."""
    x, y = torch.rand(48, 784, generator=seeded(0)), torch.randint(0, 3, (48,), generator=seeded(1))
    net = small(3, 784)
    (found,) = fit([Pupil(net, "labels")], None, x, y, Schedule(1, 1e-2, batch=48), seeded(5))
    adam = torch.optim.Adam(net.parameters(), lr=1e-2 * min(1.0, 1 / 1.02))
    F.cross_entropy(net(x), y).backward()
    adam.step()
    for one, other in zip(found.parameters(), net.parameters(), strict=True):
        torch.testing.assert_close(one, other, rtol=1e-4, atol=1e-5)


def test_the_distilled_loss_is_zero_at_the_teacher_and_falls():
    x, y = torch.rand(64, 784, generator=seeded(0)), torch.randint(0, 3, (64,), generator=seeded(1))
    teacher = small(9, 784)
    (found,) = fit([Pupil(small(1, 784), "distilled")], teacher, x, y, Schedule(20, 1e-2, batch=16), seeded(0))
    with torch.no_grad():
        taught, loss = teacher(x), LOSSES["distilled"]
        assert float(loss(taught[None], taught, y).abs().max()) < 1e-5
        before = float(loss(small(1, 784)(x)[None], taught, y).mean())
        assert float(loss(found(x)[None], taught, y).mean()) < 0.5 * before


def test_pictures_move_a_little():
    x = torch.zeros(500, 28, 28)
    x[:, 10:18, 10:18] = 1.0
    flat = x.view(500, 784)
    shifted = moved(flat, "shifted", seeded(0))
    assert shifted.sum(1).tolist() == [64.0] * 500
    assert len({tuple(one.nonzero()[0].tolist()) for one in shifted.view(-1, 28, 28)}) == 9
    turned = moved(flat, "turned", seeded(0))
    assert float(turned.min()) >= 0
    assert float(turned.max()) <= 1 + 1e-6
    assert float(turned.sum(1).mean()) == pytest.approx(64, rel=0.05)
    assert torch.equal(moved(flat, "as they are", seeded(0)), flat)
    with pytest.raises(ValueError, match="no movement"):
        moved(flat, "upside down", seeded(0))


# ------------------------------------------------------------------------------------------------ records


@pytest.fixture
def folder(tmp_path, monkeypatch):
    monkeypatch.setattr(records, "results", lambda: tmp_path)
    return tmp_path


def test_rows_that_are_there_are_not_missing(folder):
    keys = [{"seed": seed, "method": "kernel"} for seed in range(3)]
    store = Store("rows")
    assert store.missing(keys) == keys
    store.put(keys[1], {"error": 2.0})
    again = Store("rows")  # as after a run that was stopped
    assert again.missing([{"method": "kernel", "seed": seed} for seed in range(3)]) == [keys[0], keys[2]]
    assert again.get(keys[1])["error"] == 2.0
    body = json.loads((folder / "rows.json").read_text())
    assert set(body["about"]) >= {"date", "commit", "torch", "coreprune"}
    assert "commit" in body["rows"][0]
    assert "commit" not in body["rows"][0]["key"]


def test_rows_of_other_settings_leave(folder):
    store = Store("rows")
    for seed in range(3):
        store.put({"seed": seed}, {"error": float(seed)})
    kept = Store("rows").keep([{"seed": 2}, {"seed": 0}])
    assert [row["error"] for row in kept] == [2.0, 0.0]
    assert Store("rows").missing([{"seed": 1}]) == [{"seed": 1}]
    stamp = (folder / "rows.json").stat().st_mtime_ns
    Store("rows").keep([{"seed": 2}, {"seed": 0}])  # nothing new: the record is not touched
    assert (folder / "rows.json").stat().st_mtime_ns == stamp
    with pytest.raises(KeyError):
        Store("rows").keep([{"seed": 5}])


# ------------------------------------------------------------------------------------------------ tables


def row(error, **key):
    costs = {"parameters": 27660, "bytes": 110640, "multiply_adds": 27520, "milliseconds": 0.5, "seconds": 0.1}
    return {"key": key, "error": error, "prior": "p", "data": "none", "pictures": 64, "widths": "30-100", **costs}


@pytest.fixture
def record(tmp_path, monkeypatch):
    monkeypatch.setattr(records, "results", lambda: tmp_path)
    return lambda part, rows: (tmp_path / f"paper-{part}.json").write_text(json.dumps({"about": {}, "rows": rows}))


def test_the_table_of_recovery(record):
    rows = [row(e, seed=s, start="dense", training="none") for s, e in enumerate((1.7, 1.8))]
    rows += [row(e, seed=s, start="kernel", training="none") for s, e in enumerate((20.0, 22.0))]
    rows += [row(e, seed=s, start="kernel", training="labels") for s, e in enumerate((1.65, 1.85))]
    record("recovery", rows)
    text = tables.recovery()
    assert "| start | after cutting | labels |" in text
    assert "| dense | 1.75 ± 0.07 | – |" in text
    assert "| kernel | 21.00 ± 1.41 | 1.75 ± 0.14 |" in text
    assert "| kernel | labels | 1.75 ± 0.14 | 1 of 2 | 2 of 2 |" in text
    assert "| kernel | none | p | 27,660 | 110,640 | 27,520 | 0.50 | 0.10 |" in text
    record("recovery", [*rows[:2], row(2.0, seed=0, start="kernel", training="labels")])
    assert "No network of 30-100 units is at 1.9 % or less." in tables.recovery()


def test_the_other_tables(record):
    common = {"training": "labels", "epochs": 8, "seed": 1}
    record("choice", [row(e, start="kernel", rate=r, **common) for e, r in ((3.0, 0.002), (2.5, 0.005))])
    assert "8 epochs, rate 0.002: 3.00; **8 epochs, rate 0.005: 2.50**" in tables.choice()
    cut = [row(e, seed=s, removed=0.5, method="kernel", training="none") for s, e in enumerate((4.0, 6.0))]
    record("curve", [*cut, row(2.0, removed=0.5, method="kernel", **common)])
    assert "| kernel | 5.00 ± 1.41 |" in tables.curve()
    assert "after training (labels, 8 epochs); 1 seed:" in tables.curve()
    record("edges", [row(9.0, seed=0, removed=0.5, method="edges, 64 pictures")])
    assert "| −50% | edges, 64 pictures | 9.00 | 64 | 27,660 |" in tables.edges()
    after = row(1.5, removed=0.5, method="kernel", **common)
    record("lenet5", [row(1.0, seed=0, removed=0.0, method="dense", training="none"), cut[0], after])
    assert "| −50% | kernel | 4.00 | 1.50 | none | p |" in tables.lenet5()
    key = {"network": "resnet20", "seed": 0, "removed": 0.5, "method": "kernel"}
    dense = row(9.0, **{**key, "method": "dense", "removed": 0.0}, training="none")
    trained = {"key": {**key, "training": "distilled"}, "error": 12.0, "prior": "p", "data": "all"}
    record("cifar10", [dense, row(30.0, **key, training="none"), trained])
    assert "**resnet20**" in tables.cifar10()
    assert "| −50% | kernel | 30.00 | 12.00 | none | p | 27,660 |" in tables.cifar10()


class Coloured(nn.Module):
    """A convolutional network so small that an epoch of it is nothing."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.norm, self.b = nn.Conv2d(3, 8, 3, stride=4), nn.BatchNorm2d(8), nn.Conv2d(8, 6, 3, stride=2)
        self.c = nn.Linear(6, 10)

    def forward(self, x):
        return self.c(self.b(self.norm(self.a(x)).relu()).relu().mean((2, 3)))


def test_networks_of_pictures_are_cut_and_trained_for_an_epoch(tmp_path, monkeypatch):
    monkeypatch.setattr(records, "results", lambda: tmp_path)
    torch.manual_seed(0)
    dense = Coloured().eval()
    x = torch.randint(256, (300, 3, 32, 32), generator=seeded(0), dtype=torch.uint8)
    y = torch.randint(10, (300,), generator=seeded(1))
    p = cifar10.Coloured(x, y, cifar10.standardised(x), y)
    before = {name: value.clone() for name, value in dense.state_dict().items()}
    key = {"network": "tiny", "seed": 0, "method": "kernel", "removed": 0.5, "training": "none"}
    cut = cifar10.measured(key, dense, p)
    assert cut["data"] == "none"
    assert cut["parameters"] < sum(one.numel() for one in dense.parameters())
    for training, said in (("labels", "300 with labels"), ("distilled", "300 without labels")):
        after = cifar10.measured({**key, "training": training}, dense, p)
        assert after["data"] == said
        assert "parameters" not in after
    assert all(torch.equal(before[name], value) for name, value in dense.state_dict().items())
    torch.manual_seed(1)
    other = Coloured().eval()
    monkeypatch.setattr(cifar10, "EPOCHS", 20)
    taught, again = (cifar10.trained_after(other, dense, x, y, "distilled", 0) for _ in range(2))
    with torch.no_grad():
        gaps = [float(F.mse_loss(one(p.x_measure), dense(p.x_measure))) for one in (other, taught)]
    assert gaps[1] < 0.5 * gaps[0]
    assert equal_states(taught, again)


def test_every_picture_network_has_its_rows_once():
    keys = [key for t in ("none", *cifar10.TRAININGS) for name in cifar10.NETWORKS for key in cifar10._keys(name, t)]
    assert len({json.dumps(key, sort_keys=True) for key in keys}) == len(keys) == 2 * (1 + 11 + 2 * 2)


def test_the_best_schedule_is_that_of_least_error_held_out():
    rows = [
        {"key": {"training": "labels", "start": start, "epochs": n, "rate": r, "pictures": "turned"}, "error": e}
        for start, n, r, e in (("kernel", 8, 1e-3, 3.0), ("kernel", 9, 2e-3, 2.0), ("from scratch", 7, 3e-3, 1.0))
    ]
    assert best(rows, "labels", "magnitude") == Schedule(9, 2e-3, "turned")
    assert best(rows, "labels", "from scratch") == Schedule(7, 3e-3, "turned")

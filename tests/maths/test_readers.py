"""One selection for several readers, against brute force and samples."""

from __future__ import annotations

from dataclasses import replace
from itertools import combinations

import pytest
import torch
from helpers import energy, error, normal, optimal, random_layer

from coreprune.maths import kernel as kernel_module
from coreprune.maths import reading as reading_module
from coreprune.maths.activation import activation
from coreprune.maths.gram import Moments
from coreprune.maths.kernel import select
from coreprune.maths.layer import Coreset, Layer
from coreprune.maths.lowrank import LowRank
from coreprune.maths.propagate import Law
from coreprune.maths.readers import choose, choose_beside, errors, kept_of, replace_for
from coreprune.maths.reading import Reading, beside, weighed

N = 400


def seen(n, b=1, seed=0, rank=None):
    """Samples of n units with b entries, with a mean, (N, n·b)."""
    size = n * b
    return normal(N, rank or size, seed=seed) @ normal(rank or size, size, seed=seed + 1) + normal(size, seed=seed + 2)


def reading(h, W, b=1, constant=True):
    if constant:
        return Reading(W, h.mean(0), torch.cov(h.T, correction=0), b, True)
    return Reading(W, torch.zeros(h.shape[1]).double(), h.T @ h / len(h), b, False)


def some(n=6, b=1, readers=3, constant=True, seed=0):
    hs = [seen(n, b, seed=10 * r + seed) for r in range(readers)]
    Ws = [normal(2, n * b, seed=10 * r + seed + 5) * 10.0**r for r in range(readers)]
    return hs, Ws, [reading(h, W, b, constant) for h, W in zip(hs, Ws, strict=True)]


def entries(kept, b):
    return (torch.as_tensor(kept)[:, None] * b + torch.arange(b)).flatten()


def objective(readings, kept):
    """Σ_r of the error relative to the energy, each reader with its own best replacement."""
    kept = torch.as_tensor(kept)
    return sum(error(r, optimal(r, kept)) / energy(r) for r in readings)


def test_many_readers_at_once_are_each_as_alone():
    """Of several sizes and kinds in turn, some with constants and weights of their own, and one that cannot be solved."""
    plain, blocks, none = some(6, 1, 3)[2], some(6, 2, 2)[2], some(6, 1, 2, constant=False, seed=4)[2]
    flat = replace(plain[0], covariance=torch.ones(6, 6).double())
    every = [*plain, flat, *blocks, *none, plain[1]]
    kept = torch.tensor([0, 2, 5])
    together = replace_for(every, kept)
    together[1] = Coreset(kept, normal(6, 3, seed=8), normal(6, seed=9))
    together[2] = Coreset(kept, torch.tensor([1.0, 2.0, 0.5]).double())
    found = errors(every, together)
    assert len(found) == len(every)
    for one, coreset, left in zip(every, together, found, strict=True):
        assert left == pytest.approx(error(one, coreset), rel=1e-9, abs=1e-9)
    for i in (0, 3, 4, 5, 6, 7, 8):
        alone = optimal(every[i], kept)
        assert torch.allclose(together[i].mix, alone.mix, atol=1e-10)
        assert (alone.offset is None) == (together[i].offset is None)


def test_readers_of_several_sites_at_once_are_each_as_alone():
    """Sites that keep other units each, one of whose readers has no constant, and one whose kept units change."""
    sites = [some(6, 1, 2, seed=1)[2], some(6, 1, 1, constant=False, seed=2)[2], some(6, 1, 3, seed=3)[2]]
    kept = [torch.tensor([0, 2, 5]), torch.tensor([1, 2, 3]), torch.tensor([0, 4, 5])]
    every = [one for readings in sites for one in readings]
    own = [S for S, readings in zip(kept, sites, strict=True) for _ in readings]
    together = replace_for(every, own)
    for one, S, coreset in zip(every, own, together, strict=True):
        alone = optimal(one, S)
        assert torch.equal(coreset.indices, S) and torch.allclose(coreset.mix, alone.mix, atol=1e-10)
        assert (alone.offset is None) == (coreset.offset is None)
        assert alone.offset is None or torch.allclose(coreset.offset, alone.offset, atol=1e-10)
    for _ in range(2):
        for one, coreset, left in zip(every, together, errors(every, together), strict=True):
            assert left == pytest.approx(error(one, coreset), rel=1e-9, abs=1e-9)
        together[3] = Coreset(own[3], normal(6, 3, seed=8), normal(6, seed=9))


@pytest.mark.parametrize("n,k,b,readers", [(8, 3, 1, 2), (8, 3, 2, 1), (8, 7, 1, 1), (8, 8, 1, 3)])
def test_units_of_several_sites_are_chosen_as_of_each(n, k, b, readers):
    sites = [some(n, b, readers, seed=seed)[2] for seed in range(4)]
    if n > k + 1:
        sites[2] = [replace(one, covariance=dead(one.covariance, 3 * b, b)) for one in sites[2]]
    for readings, path in zip(sites, choose_beside(sites, n, k), strict=True):
        alone = choose(readings, n, k)
        assert torch.equal(path.kept, alone.kept) and torch.equal(path.order, alone.order)
        assert torch.allclose(path.energy, alone.energy, rtol=1e-7) and path.added == alone.added


def dead(G, at, b):
    """The covariance where some entries do not vary."""
    G = G.clone()
    G[at : at + b], G[:, at : at + b] = 0, 0
    return G


# ---------------------------------------------------------------- one replacement


@pytest.mark.parametrize("b", [1, 2])
@pytest.mark.parametrize("constant", [True, False])
def test_the_replacement_is_the_least_squares_solution_on_the_samples(b, constant):
    hs, _, (one,) = some(6, b, 1, constant)
    kept = torch.tensor([0, 2, 5])
    found = optimal(one, kept)
    X = hs[0][:, entries(kept, b)]
    if constant:
        X = torch.cat([X, torch.ones(N, 1, dtype=torch.float64)], 1)
    best = torch.linalg.lstsq(X, hs[0]).solution.T
    assert torch.allclose(found.mix, best[:, : 3 * b], atol=1e-6) and torch.equal(found.indices, kept)
    if constant:
        assert torch.allclose(found.offset, best[:, -1], atol=1e-6)
    else:
        assert found.offset is None


@pytest.mark.parametrize("b", [1, 3])
@pytest.mark.parametrize("constant", [True, False])
@pytest.mark.parametrize("kind", ["best", "any", "plain"])
def test_the_error_is_the_mean_square_over_the_samples(b, constant, kind):
    (h,), (W,), (one,) = some(4, b, 1, constant)
    kept = torch.tensor([1, 3])
    at = entries(kept, b)
    if kind == "best":
        coreset = optimal(one, kept)
    elif kind == "any":
        coreset = Coreset(kept, normal(4 * b, 2 * b, seed=8), normal(4 * b, seed=9) if constant else None)
    else:
        coreset = Coreset(kept, torch.tensor([2.0, -1.0]).double())
    T = coreset.mix
    if T.dim() == 1:
        T = torch.zeros(4 * b, 2 * b).double()
        T[at, torch.arange(2 * b)] = torch.tensor([2.0, -1.0]).double().repeat_interleave(b)
    t = 0 if coreset.offset is None else coreset.offset
    gap = (h - h[:, at] @ T.T - t) @ W.T
    assert error(one, coreset) == pytest.approx(float(gap.square().sum(1).mean()), rel=1e-9)


def test_the_energy_is_the_variance_of_the_output():
    (h,), (W,), (one,) = some(5, 1, 1)
    y = h @ W.T
    assert energy(one) == pytest.approx(float(y.var(0, correction=0).sum()), rel=1e-12)
    through_origin = reading(h, W, constant=False)
    assert energy(through_origin) == pytest.approx(float(y.square().sum(1).mean()), rel=1e-12)


@pytest.mark.parametrize("b", [1, 2])
@pytest.mark.parametrize("constant", [True, False])
def test_keeping_everything_changes_nothing(b, constant):
    _, _, readings = some(4, b, 2, constant)
    for one in readings:
        found = optimal(one, torch.arange(4))
        assert torch.equal(found.mix, torch.eye(4 * b, dtype=torch.float64))
        assert error(one, found) <= 1e-12 * energy(one)
        assert found.offset is None or float(found.offset.abs().max()) < 1e-12
    assert choose(readings, 4, 4).kept.tolist() == [0, 1, 2, 3]


def test_a_kept_unit_stands_for_itself():
    _, _, (one,) = some(5, 2, 1)
    found = optimal(one, torch.tensor([1, 4]))
    assert torch.equal(found.mix[entries([1, 4], 2)], torch.eye(4, dtype=torch.float64))


# ---------------------------------------------------------------- the selection


def test_one_reader_is_the_kernel_of_a_layer():
    layer = random_layer(n=14, p=3)
    h = seen(14)
    law = Law(Moments(h.mean(0), torch.cov(h.T, correction=0)))
    one = Reading(layer.outgoing, law.moments.mean, law.moments.covariance)
    for k in (1, 5, 13):
        theirs = select(Layer(layer.incoming, layer.bias, layer.outgoing, layer.activation, 1.0, law), k)
        mine = choose([one], 14, k)
        assert torch.equal(mine.kept, theirs.kept) and torch.allclose(mine.energy, theirs.energy, rtol=1e-5)


@pytest.mark.parametrize("b,readers", [(1, 1), (1, 3), (2, 1), (2, 2)])
def test_the_greedy_is_near_the_best_of_all_subsets_and_never_below(b, readers):
    gaps = []
    for seed in range(5):
        _, _, readings = some(6, b, readers, seed=seed)
        for k in (2, 4):
            every = [objective(readings, list(S)) for S in combinations(range(6), k)]
            found = objective(readings, choose(readings, 6, k).kept)
            assert found >= min(every) - 1e-9
            gaps.append((found - min(every)) / (max(every) - min(every)))
    assert max(gaps) < 0.6 and sum(gaps) / len(gaps) < 0.2, gaps


def test_every_reader_counts_alike_whatever_its_scale():
    """Two readers, each of which sees its own half of the units: both halves lose, though one is a million times larger."""
    h = normal(N, 8)
    Ws = [torch.zeros(4, 8).double() for _ in range(2)]
    Ws[0][:, :4], Ws[1][:, 4:] = (
        torch.eye(4) * torch.tensor([1.0, 2, 3, 4]),
        torch.eye(4) * torch.tensor([4.0, 3, 2, 1]),
    )
    readings = [reading(h, Ws[0] * 1e-3), reading(h, Ws[1] * 1e3)]
    assert choose(readings, 8, 4).kept.tolist() == [2, 3, 4, 5]


@pytest.mark.parametrize("constant", [True, False])
def test_each_reader_gets_a_replacement_of_its_own(constant):
    _, _, readings = some(5, 1, 2, constant)
    a, b = (optimal(one, torch.tensor([0, 1])) for one in readings)
    assert not torch.allclose(a.mix, b.mix, atol=0.01)
    for one, own, other in ((readings[0], a, b), (readings[1], b, a)):
        assert error(one, own) < error(one, other)


def test_readers_with_blocks_of_different_sizes_agree_on_units():
    plain, (wide,) = some(5, 1, 1)[2], some(5, 3, 1, seed=3)[2]
    path = choose([*plain, wide], 5, 2)
    assert path.kept.numel() == 2 and sorted({*path.kept.tolist(), *path.order.tolist()}) == list(range(5))
    assert optimal(wide, path.kept).mix.shape == (15, 6) and optimal(plain[0], path.kept).mix.shape == (5, 2)


def dead_and_double(b=1):
    """Units 1 and 4 are constant, and unit 5 repeats unit 0; the others are 2 and 3."""
    h = normal(N, 4 * b)
    parts = [
        h[:, :b],
        torch.full((N, b), 2.0).double(),
        h[:, b : 2 * b],
        h[:, 2 * b : 3 * b],
        torch.zeros(N, b).double(),
    ]
    return torch.cat([*parts, -3 * h[:, :b]], 1)


@pytest.mark.parametrize("b", [1, 2])
@pytest.mark.parametrize("readers", [1, 2])
def test_dead_and_repeated_units_cost_nothing(b, readers):
    h = dead_and_double(b)
    readings = [reading(h, normal(4, 6 * b, seed=r), b) for r in range(readers)]
    path = choose(readings, 6, 3)
    assert {2, 3} < set(path.kept.tolist()) and len({0, 5} & set(path.kept.tolist())) == 1
    assert objective(readings, path.kept) < 1e-6
    whole = choose(readings, 6, 1)
    total = readers * 1.0 if readers > 1 else energy(readings[0])
    curve = whole.curve(6, total)
    assert sorted([*whole.order.tolist(), *whole.kept.tolist()]) == list(range(6))
    assert float(curve[3]) < 1e-6 * total < 1e-3 * total < float(curve[2]) and curve[6] == 0
    for k in (1, 2, 3, 5):
        assert torch.equal(kept_of(whole, 6, k), choose(readings, 6, k).kept) or k > 3
    assert len({0, 5} & set(kept_of(whole, 6, 3).tolist())) == 1 and {2, 3} < set(kept_of(whole, 6, 3).tolist())


@pytest.mark.parametrize("live", [0, 1, 2])
def test_where_few_units_vary_those_explain_everything(live):
    h = torch.full((N, 4), 0.5).double()
    h[:, 4 - live :] = normal(N, live)
    one = reading(h, normal(3, 4))
    path = choose([one], 4, max(live, 1))
    assert {*range(4 - live, 4)} <= set(path.kept.tolist())
    curve = path.curve(4, max(energy(one), 1e-30))
    assert curve[live] <= max(1e-9 * energy(one), 1e-30) and bool((curve.diff() <= 0).all())


@pytest.mark.parametrize("kind", ["optimal", "any", "factors", "identity"])
@pytest.mark.parametrize("constant", [True, False])
@pytest.mark.parametrize("outputs", [3, 12])
def test_a_reader_with_few_outputs_has_the_same_error_energy_and_path_without_its_gram(
    monkeypatch, outputs, constant, kind
):
    h, W, kept = seen(12), normal(outputs, 12, seed=7), torch.tensor([0, 2, 5, 9])
    coreset = {
        "optimal": None,
        "any": Coreset(kept, normal(12, 4, seed=8), normal(12, seed=9) if constant else None),
        "factors": Coreset(kept, torch.tensor([1.0, 2.0, 0.5, 1.0]).double()),
        "identity": Coreset(kept, torch.eye(12).double()[:, kept]),
    }[kind]
    found = []
    for small in (1024, 4):
        monkeypatch.setattr(kernel_module, "SMALL", small)
        one = reading(h, W, 1, constant)
        assert one.narrow == (small == 4)
        if one.narrow:
            monkeypatch.setattr(Reading, "gram", property(lambda _: pytest.fail("M was formed")))
        own = replace_for([one], kept)[0] if coreset is None else coreset
        found.append(([one.energy, *errors([one], [own])], one.squares))
        path = choose([one], 12, 5) if one.narrow else None
    torch.testing.assert_close(*found)
    monkeypatch.undo()
    monkeypatch.setattr(kernel_module, "SMALL", 4)
    layer = Layer(h.T[:, :0], normal(12) * 0, W, activation("identity"), 1.0, Law(one.moments))
    assert path is not None and torch.equal(path.kept, select(layer, 5).kept)


def test_copies_go_before_anything_that_is_new_where_units_are_many_and_in_float32():
    """With a ridge a copy is never quite explained by what it is a copy of, and must not look like something new."""
    h = (normal(6000, 48, seed=1) @ normal(48, 880, seed=2) / 48**0.5 + 0.1 * normal(880, seed=4)).relu()
    h = torch.cat([h, h[:, :220]], 1).float()
    one = Reading(normal(24, 1100, seed=3).float(), h.mean(0), torch.cov(h.T, correction=0))
    kept = set(choose([one], 1100, 880).kept.tolist())
    assert all((i in kept) != (880 + i in kept) for i in range(220))


@pytest.mark.parametrize("size", [0.1, 30.0])
@pytest.mark.parametrize("constant", [True, False])
def test_the_spread_is_the_variance_of_what_is_read_whatever_its_mean(size, constant):
    h, W = seen(6) + size, normal(2, 6, seed=5)
    G, m = torch.cov(h.T, correction=0), h.mean(0)
    one = Reading(W, m, G) if constant else replace(reading(h, W, constant=False), about=(m, G))
    assert one.spread == pytest.approx(float((h @ W.T).var(0, correction=0).sum()), rel=1e-9)


def test_a_longer_path_keeps_what_a_shorter_one_does():
    _, _, readings = some(8, 1, 2)
    path = choose(readings, 8, 1)
    for k in range(1, 9):
        assert torch.equal(kept_of(path, 8, k), choose(readings, 8, k).kept)
    _, _, readings = some(5, 2, 2)
    path = choose(readings, 5, 1)
    for k in range(1, 6):
        assert torch.equal(kept_of(path, 5, k), choose(readings, 5, k).kept)


def test_a_path_that_adds_is_filled_up_by_index():
    from coreprune.maths.select import Path

    path = Path(torch.tensor([1, 4]), torch.tensor([4, 1]), torch.tensor([2.0, 1.0]))
    assert kept_of(path, 5, 1).tolist() == [4] and kept_of(path, 5, 2).tolist() == [1, 4]
    assert kept_of(path, 5, 4).tolist() == [0, 1, 2, 4]


def test_a_weight_too_large_for_one_piece_counts_whole(monkeypatch):
    W = normal(7, 3, 5, seed=4)
    one = Reading(W, torch.zeros(5).double(), torch.eye(5).double())
    monkeypatch.setattr(reading_module, "_CHUNK", 2 * 3 * 5)
    rows = W.reshape(-1, 5)
    torch.testing.assert_close(one.gram, sum(torch.outer(row, row) for row in rows))


def test_readers_beside_each_other_weigh_as_each_alone():
    """Some with weights of one shape, one of another shape, one of another precision, and one of low rank."""
    hs, _, plain = some(6, 1, 4)
    odd = reading(hs[0], normal(3, 6, seed=8))
    half = replace(plain[1], outgoing=plain[1].outgoing.float())
    thin = replace(plain[2], covariance=LowRank(normal(6, 2, seed=3), normal(6, seed=4).square()))
    every = [plain[0], odd, half, plain[1], thin, plain[3]]
    found = beside(every)
    assert [one.known is not None for one in found] == [True, False, False, True, False, True]
    for one, alone in zip(found, every, strict=True):
        torch.testing.assert_close(one.gram, alone.gram, rtol=1e-12, atol=1e-12)
        assert one.energy == pytest.approx(alone.energy, rel=1e-12)
        assert torch.equal(one.gram, one.gram.T)
    again = weighed(found[0], normal(6, 6, seed=9) @ normal(6, 6, seed=9).T)
    assert not torch.allclose(again.gram, found[0].gram)

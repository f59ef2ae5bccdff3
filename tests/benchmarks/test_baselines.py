"""The baselines of benchmarks/baselines against loops, exact cases and networks that are cut by hand."""

from __future__ import annotations

import copy
import doctest
import importlib
import pkgutil

import numpy as np
import pytest
import torch
from helpers import seeded
from torch import nn
from torch.nn import functional as F

import baselines
import coreprune as cp
from baselines import METHODS, clusters, flap, folding, grail, lbyl, magnitude, merging, slicing, wanda
from baselines.cutting import carried_out, chosen, see, units_of
from baselines.units import Norm, Seen, Units, selected
from coreprune.errors import InvalidInputError
from coreprune.model.tensors import tensors_of


def drawn(*shape, seed=0):
    return torch.randn(*shape, generator=seeded(seed), dtype=torch.float64)


def site(n=12, d=5, p=4, *, norm=False, data=False, seed=0, readers=1):
    """A site of random numbers, with moments of ReLU units on Gaussian inputs."""
    rows, bias = drawn(n, d, seed=seed), drawn(n, 1, seed=seed + 1)
    between = None
    if norm:
        positive = drawn(3, n, seed=seed + 2).abs() + 0.3
        between = Norm(positive[0], drawn(n, seed=seed + 3), drawn(n, seed=seed + 4), positive[1])
    W = tuple(drawn(p, n, seed=seed + 5 + r) for r in range(readers))
    units = Units(rows, bias, W, between)
    if not data:
        return units
    return Units(rows, bias, W, between, (seen_on(units, drawn(400, d, seed=9)),) * readers)


def hidden(units, x):
    """φ(N(P x + b)) for a ReLU."""
    a = x @ units.rows.T + units.bias[:, 0]
    return F.relu(a if units.norm is None else units.norm(a))


def seen_on(units, x):
    h = hidden(units, x)
    return Seen(h.mean(0), torch.cov(h.T, correction=0), len(h))


def cut_hidden(units, choice, x):
    """What the cut layer gives its readers: the kept or merged units, through T and t."""
    rows, bias, norm = units.rows[choice.kept], units.bias[choice.kept, 0], None
    if units.norm is not None:
        n = units.norm
        norm = Norm(n.gamma[choice.kept], n.beta[choice.kept], n.mean[choice.kept], n.variance[choice.kept], n.eps)
    if choice.merge is not None:
        rows, bias, norm = choice.merge.rows.T @ units.rows, choice.merge.rows.T @ units.bias[:, 0], choice.merge.norm
    h = hidden(Units(rows, bias[:, None], (), norm), x)
    T, t = choice.mixes[0], choice.offsets[0]
    if T.dim() == 1:
        full = T.new_zeros(units.count, len(T))
        full[choice.kept, torch.arange(len(T))] = T
        T = full
    return h @ T.T + (0 if t is None else t)


def test_every_module_keeps_its_examples():
    count = 0
    for module in pkgutil.iter_modules(baselines.__path__, "baselines."):
        result = doctest.testmod(importlib.import_module(module.name), optionflags=doctest.NORMALIZE_WHITESPACE)
        assert not result.failed, module.name
        count += result.attempted
    assert count >= 10


# ---------------------------------------------------------------------------------------------- what all have in common


@pytest.mark.parametrize("norm", [False, True])
@pytest.mark.parametrize("label", METHODS)
def test_choices_are_well_formed(label, norm):
    units, method = site(norm=norm, data=True, readers=2), METHODS[label]
    for k in (1, 5, 11):
        choice = method.choose(units, k, seeded(3))
        assert choice.kept.tolist() == sorted(set(choice.kept.tolist()))
        assert len(choice.kept) == k
        assert len(choice.mixes) == len(choice.offsets) == 2
        assert all(torch.isfinite(T).all() and T.shape in {(k,), (12, k)} for T in choice.mixes)
        again = method.choose(units, k, seeded(3))
        assert torch.equal(again.kept, choice.kept)
        assert all(torch.allclose(a, b) for a, b in zip(again.mixes, choice.mixes, strict=True))


@pytest.mark.parametrize("norm", [False, True])
@pytest.mark.parametrize("label", [label for label in METHODS if "GRAIL" not in label])  # its ridge is not zero
def test_keeping_everything_changes_nothing(label, norm):
    units, x = site(norm=norm, data=True), drawn(50, 5, seed=8)
    choice = METHODS[label].choose(units, 12, seeded(0))
    torch.testing.assert_close(cut_hidden(units, choice, x), hidden(units, x))


@pytest.mark.parametrize("norm", [False, True])
@pytest.mark.parametrize("label", ["folding", "folding, Fold-AR", "neuron merging", "LBYL"])
def test_duplicates_are_merged_without_loss(label, norm):
    one = site(6, d=8, norm=norm)
    twice = torch.arange(6).repeat_interleave(2)
    between = None
    if norm:
        n = one.norm
        between = Norm(n.gamma[twice], n.beta[twice], n.mean[twice], n.variance[twice], n.eps)
    units = Units(one.rows[twice], one.bias[twice], (one.readers[0][:, twice],), between)
    x, kept = drawn(50, 8, seed=8), torch.arange(0, 12, 2)
    if label == "neuron merging":  # this and the next keep the largest norms, and so both copies of some
        choice = selected(units, kept, merging.decomposed(units, kept))
    elif label == "LBYL":
        choice = selected(units, kept, lbyl.restored(units, kept, 1e-3, 1e-10))
    else:
        choice = METHODS[label].choose(units, 6, seeded(1))
    torch.testing.assert_close(cut_hidden(units, choice, x), hidden(units, x), rtol=1e-6, atol=1e-6)
    wrong = selected(units, kept, torch.zeros(12, 6, dtype=torch.float64).index_fill_(0, kept, 1 / 6))
    assert float((cut_hidden(units, wrong, x) - hidden(units, x)).abs().max()) > 0.1


def test_calibrated_methods_ask_for_moments():
    for label, method in METHODS.items():
        if method.data:
            with pytest.raises(InvalidInputError, match="measure them first"):
                method.choose(site(), 3, seeded(0))
        else:
            assert len(method.choose(site(), 3, seeded(0)).kept) == 3, label


# ---------------------------------------------------------------------------------------------- scores, by loops


@pytest.mark.parametrize("norm", [False, True])
def test_norms_by_loops(norm):
    units = site(norm=norm)
    for j in range(12):
        entries = [*units.rows[j].tolist(), *units.bias[j].tolist()]
        assert float(magnitude.norms(units, 1)[j]) == pytest.approx(sum(abs(v) for v in entries))
        assert float(magnitude.norms(units, 2)[j]) == pytest.approx(sum(v * v for v in entries) ** 0.5)
    kept = magnitude.largest_product(units, 1).kept
    product = [float(units.points[j].norm() * units.readers[0][:, j].norm()) for j in range(12)]
    assert int(kept[0]) == int(np.argmax(product))


def test_wanda_by_loops():
    units, x = site(), drawn(40, 5, seed=8)
    h = hidden(units, x)
    units = Units(units.rows, units.bias, units.readers, None, (seen_on(units, x),))
    for j in range(12):
        length = sum(float(h[t, j]) ** 2 for t in range(40)) ** 0.5
        expected = sum(abs(float(units.readers[0][i, j])) * length for i in range(4))
        assert float(wanda.scores(units)[j]) == pytest.approx(expected)


def test_flap_by_loops():
    units, x = site(), drawn(40, 5, seed=8)
    h = hidden(units, x)
    units = Units(units.rows, units.bias, units.readers, None, (seen_on(units, x),))
    expected = []
    for j in range(12):
        mean = sum(float(v) for v in h[:, j]) / 40
        variance = sum((float(v) - mean) ** 2 for v in h[:, j]) / 39
        expected.append(variance * sum(float(units.readers[0][i, j]) ** 2 for i in range(4)))
    assert flap.fluctuation(units).tolist() == pytest.approx(expected)
    centre = sum(expected) / 12
    deviation = (sum((v - centre) ** 2 for v in expected) / 11) ** 0.5
    assert flap.standardised(flap.fluctuation(units)).tolist() == pytest.approx(
        [(v - centre) / deviation for v in expected]
    )
    choice = flap.flap_bias(units, 7)
    assert choice.kept.tolist() == sorted(np.argsort(expected)[-7:].tolist())
    difference = (hidden(units, x) - cut_hidden(units, choice, x)) @ units.readers[0].T
    torch.testing.assert_close(difference.mean(0), torch.zeros(4, dtype=torch.float64), atol=1e-12, rtol=0)


def test_flap_shares_out_one_threshold():
    scores = {"a": drawn(20, seed=1).square(), "b": 1e6 * drawn(30, seed=2).square()}

    def parameters(kept):
        return 7 * kept["a"] + 3 * kept["b"]

    assert flap.allocated(scores, parameters, 230) == {"a": 20, "b": 30}
    for limit in (229, 150, 60, 11):
        kept = flap.allocated(scores, parameters, limit)
        assert parameters(kept) <= limit
        order = {name: flap.standardised(score).sort().values.tolist() for name, score in scores.items()}
        gone = {name: len(score) - kept[name] for name, score in scores.items()}
        last = max(order[name][gone[name] - 1] for name in scores if gone[name])
        for name in scores:  # what stays is above all that went, but for the one unit that has to stay
            assert kept[name] == 1 or order[name][gone[name]] >= last
        name = next(name for name in scores if gone[name] and order[name][gone[name] - 1] == last)
        assert parameters({**kept, name: kept[name] + 1}) > limit
    assert flap.allocated(scores, parameters, 0) == {"a": 1, "b": 1}


# ---------------------------------------------------------------------------------------------- clusters and folding


def planted(k=5, each=4, d=6, seed=0):
    centres = 10 * drawn(k, d, seed=seed)
    truth = torch.arange(k).repeat(each)
    return centres[truth] + 0.05 * drawn(k * each, d, seed=seed + 1), truth


@pytest.mark.parametrize("d", [2, 6, 50])  # 50 features of 20 points: in the coordinates of their span
def test_k_means_finds_planted_clusters(d):
    points, truth = planted(d=d)
    label = clusters.k_means(points, 5, seeded(0))
    pairs = {(int(a), int(b)) for a, b in zip(truth, label, strict=True)}
    assert len(pairs) == 5
    by_loops = sum(float((points[i] - points[label == label[i]].mean(0)).square().sum()) for i in range(len(points)))
    assert clusters.inertia(points, label) == pytest.approx(by_loops)


@pytest.mark.parametrize("k", [12, 24])  # 24 are more than there are different points
def test_k_means_takes_the_best_start_and_keeps_every_cluster(k):
    points = drawn(30, 3, seed=4)
    points[10:20] = points[0]
    label = clusters.k_means(points, k, seeded(0))
    assert set(label.tolist()) == set(range(k))
    best = clusters.inertia(points, label)
    assert best <= min(clusters.inertia(points, clusters.k_means(points, k, seeded(s), 1)) for s in range(5)) + 1e-9
    names, U = clusters.membership(points, label)
    assert U.sum(0).tolist() == [float((label == label[i]).sum()) for i in names]
    assert bool((U[names].diagonal() == 1).all())


def test_folding_is_centroids_and_sums():
    points, truth = planted()
    units = Units(points[:, :5], points[:, 5:], (drawn(3, 20, seed=7),))
    choice = folding.fold(units, 5, seeded(0))
    for s, unit in enumerate(choice.kept):
        members = (truth == truth[unit]).nonzero()[:, 0]
        row = choice.merge.rows.T[s] @ units.rows
        torch.testing.assert_close(row, units.rows[members].mean(0))
        column = units.readers[0] @ choice.mixes[0][:, s]
        torch.testing.assert_close(column, units.readers[0][:, members].sum(1))


def test_folding_with_batchnorm_averages_the_folded_rows():
    units, x = site(norm=True), drawn(50, 5, seed=8)
    choice = folding.fold(units, 4, seeded(0))
    U = choice.mixes[0]
    mean = (U / U.sum(0)).T @ units.points
    expected = F.relu(x @ mean[:, :5].T + mean[:, 5]) @ U.T
    torch.testing.assert_close(cut_hidden(units, choice, x), expected, rtol=1e-6, atol=1e-6)


def test_correlation_of_a_cluster_by_loops():
    units = site()
    _, U = clusters.membership(units.rows, clusters.k_means(units.rows, 4, seeded(0)))
    for c in range(4):
        members = U[:, c].nonzero()[:, 0].tolist()
        pairs = [(i, j) for i in members for j in members if i != j]
        cosines = [float(F.cosine_similarity(units.rows[i], units.rows[j], 0)) for i, j in pairs]
        expected = sum(cosines) / len(cosines) if cosines else 0.0
        assert float(folding.mean_correlation(units.rows, U)[c]) == pytest.approx(expected)
        n = len(members)
        assert float(folding.repair(units.rows, U)[c]) == pytest.approx(n / (n + (n * n - n) * expected) ** 0.5)


def test_repair_keeps_the_variance_of_white_inputs():
    """With inputs of unit covariance and statistics to match, what enters the ReLU has the variance γ² of before."""
    n, d, x = 12, 40, drawn(200_000, 40, seed=3)
    rows = (drawn(3, d, seed=1)[torch.arange(3).repeat(4)] + 0.9 * drawn(n, d, seed=2)) * torch.linspace(0.5, 2, n)[
        :, None
    ]
    bias = drawn(n, 1, seed=4)
    gamma = torch.full((n,), 1.7, dtype=torch.float64)
    between = Norm(gamma, drawn(n, seed=5), bias[:, 0].clone(), rows.square().sum(1) - 1e-5)
    units = Units(rows, bias, (torch.zeros(2, n, dtype=torch.float64),), between)
    choice = folding.fold_ar(units, 3, seeded(0))
    merge = choice.merge
    a = merge.norm(x @ (merge.rows.T @ units.rows).T + merge.rows.T @ units.bias[:, 0])
    assert a.std(0).tolist() == pytest.approx([1.7] * 3, rel=0.01)
    plain = folding.fold(units, 3, seeded(0)).merge
    unrepaired = plain.norm(x @ (plain.rows.T @ units.rows).T + plain.rows.T @ units.bias[:, 0])
    assert float(unrepaired.std(0).max()) < 1.5
    means = (choice.mixes[0] / choice.mixes[0].sum(0)).T @ between.beta
    torch.testing.assert_close(a.mean(0), means, atol=0.02, rtol=0)


# ---------------------------------------------------------------------------------------------- merging, LBYL


def test_neuron_merging_by_loops():
    units = site()
    kept = torch.tensor([1, 4, 6])
    T = merging.decomposed(units, kept)
    points = torch.cat([units.rows, units.bias], 1)
    for i in range(12):
        expected = [0.0] * 3
        if i in kept:
            expected[kept.tolist().index(i)] = 1.0
        else:
            cosines = [float(F.cosine_similarity(points[i], points[j], 0)) for j in kept]
            best = int(np.argmax(cosines))
            if cosines[best] >= 0.45:
                expected[best] = float(points[i].norm() / points[kept[best]].norm())
        assert T[i].tolist() == pytest.approx(expected)
    assert 0 < int((T.abs().sum(1) == 0).sum()) < 9  # some reach the threshold, some do not


def test_neuron_merging_with_batchnorm_by_loops():
    units = site(norm=True)
    n, kept = units.norm, [0, 5, 7, 9]
    T = merging.decomposed(units, torch.tensor(kept), balance=0.6)
    sigma = (n.variance + n.eps).sqrt()
    mu = n.mean - units.bias[:, 0]
    for i in set(range(12)) - set(kept):
        cosine, S, B = [], [], []
        for j in kept:
            s = units.rows[i].norm() / units.rows[j].norm()
            cosine.append(float(units.rows[i] @ units.rows[j] / units.rows[i].norm() / units.rows[j].norm()))
            S.append(float(s * n.gamma[i] * sigma[j] / (sigma[i] * n.gamma[j])))
            B.append(
                float(n.gamma[i] / sigma[i] * (s * (mu[j] - sigma[j] * n.beta[j] / n.gamma[j]) - mu[i]) + n.beta[i])
            )
        gap = [abs(b / s) for b, s in zip(B, S, strict=True)]
        gap = [(g - min(gap)) / (max(gap) - min(gap)) for g in gap]
        best = int(np.argmin([0.6 * (1 - c) + 0.4 * g for c, g in zip(cosine, gap, strict=True)]))
        expected = [S[best] if j == best and cosine[best] >= 0.1 else 0.0 for j in range(4)]
        assert T[i].tolist() == pytest.approx(expected)


def test_parallel_filters_pass_a_batchnorm_as_the_paper_says():
    """N_i = S N_j + B exactly for f_i = s f_j."""
    units = site(norm=True)
    rows = units.rows.clone()
    rows[3] = 0.7 * rows[8]
    units = Units(rows, units.bias, units.readers, units.norm)
    S, distance = merging._through(units, torch.tensor([8]), (rows.norm(dim=1) / rows[8].norm())[:, None])
    a = units.norm(drawn(50, 5) @ rows.T + units.bias[:, 0])
    rest = a[:, 3] - S[3, 0] * a[:, 8]
    assert float(rest.std()) < 1e-12
    assert abs(float(rest.mean() / S[3, 0])) == pytest.approx(float(distance[3, 0]))


@pytest.mark.parametrize("norm", [False, True])
def test_lbyl_is_least_squares_of_its_objective(norm):
    units = site(norm=norm)
    kept, lam1, lam2 = torch.tensor([0, 3, 4, 8]), 0.3, 0.2
    T = lbyl.restored(units, kept, lam1, lam2)
    g = np.ones(12) if not norm else (units.norm.gamma / units.norm.deviation).numpy() ** 2
    for i in set(range(12)) - set(kept.tolist()):
        if norm:
            filters, constant = units.points[:, :5].numpy(), units.points[:, 5].numpy()
        else:
            filters, constant = units.points.numpy(), np.zeros(12)
        A = np.vstack([
            filters[kept].T / g[i] ** 0.5, lam1**0.5 * constant[kept][None], lam2**0.5 * np.eye(4),
        ])  # fmt: skip
        b = np.concatenate([filters[i] / g[i] ** 0.5, [lam1**0.5 * constant[i]], np.zeros(4)])
        assert T[i].tolist() == pytest.approx(np.linalg.lstsq(A, b, rcond=None)[0].tolist())
    assert torch.equal(T[kept], torch.eye(4, dtype=torch.float64))


def test_lbyl_in_the_stored_filters_is_the_papers_residual_error():
    """(σ_i/γ_i)² ‖p̂_i − Σ s_j p̂_j‖² is ‖f_i − Σ a_j f_j‖² with a_j = s_j γ_j σ_i/(σ_j γ_i)."""
    units, s = site(norm=True), drawn(4, seed=6)
    kept, i, n = torch.tensor([0, 3, 4, 8]), 7, units.norm
    ratio = n.gamma / n.deviation
    a = s * ratio[kept] / ratio[i]
    stored = (units.rows[i] - a @ units.rows[kept]).square().sum()
    folded = (units.points[i, :5] - s @ units.points[kept, :5]).square().sum() / ratio[i] ** 2
    assert float(stored) == pytest.approx(float(folded))


# ---------------------------------------------------------------------------------------------- calibrated replacements


def test_grail_is_ridge_regression():
    units, x = site(), drawn(60, 5, seed=8)
    h = hidden(units, x)
    units = Units(units.rows, units.bias, units.readers, None, (seen_on(units, x),))
    kept = torch.tensor([2, 3, 10])
    level = 1e-3 * float(h[:, kept].square().mean())
    A = np.vstack([h[:, kept].numpy() / 60**0.5, level**0.5 * np.eye(3)])
    b = np.vstack([h.numpy() / 60**0.5, np.zeros((3, 12))])
    expected = np.linalg.lstsq(A, b, rcond=None)[0].T
    torch.testing.assert_close(grail.compensated(units.seen[0].second, kept), torch.from_numpy(expected))


def test_greedy_takes_the_best_unit_of_every_step():
    units = site(n=9, data=True)
    G, W = units.seen[0].second, units.readers[0]

    def error(S):
        T = G[:, S] @ torch.linalg.inv(G[S][:, S])
        return float(torch.trace(W @ (G - T @ G[S]) @ W.T))

    chosen_so_far = []
    for k in range(1, 6):
        rest = [j for j in range(9) if j not in chosen_so_far]
        chosen_so_far.append(min(rest, key=lambda j: error([*chosen_so_far, j])))
        assert grail.greedy(units, k).tolist() == sorted(chosen_so_far)


def test_greedy_survives_dead_and_copied_units():
    units = site(n=8, data=True)
    order = torch.tensor([0, 0, 1, 1, 2, 2, 3, 3])
    G = units.seen[0].second[order][:, order]
    G[:2], G[:, :2] = 0, 0
    seen = Seen(torch.zeros(8, dtype=torch.float64), G, 100)
    for k in (3, 6, 8):
        kept = grail.greedy(Units(units.rows, units.bias, units.readers, None, (seen,)), k)
        assert len(set(kept.tolist())) == k
        if k == 3:
            assert {int(order[j]) for j in kept} == {1, 2, 3}


def test_pca_slicing_is_exact_on_the_principal_space():
    basis, z = drawn(12, 4, seed=2), drawn(300, 4, seed=3)
    h = z @ basis.T
    units = site()
    seen = Seen(h.mean(0), torch.cov(h.T, correction=0), 300)
    choice = slicing.pca_slicing(Units(units.rows, units.bias, units.readers, None, (seen,)), 4)
    torch.testing.assert_close(h[:, choice.kept] @ choice.mixes[0].T, h)
    torch.testing.assert_close(choice.mixes[0][choice.kept], torch.eye(4, dtype=torch.float64))
    _, vectors = np.linalg.eigh(seen.second.numpy())
    V = slicing.principal(seen.second, 4).numpy()
    np.testing.assert_allclose(V @ V.T, vectors[:, -4:] @ vectors[:, -4:].T, atol=1e-9)


# ---------------------------------------------------------------------------------------------- in a network


class Small(nn.Module):
    """Two convolutions with BatchNorm, the second padded, and a linear reader of pooled pixels."""

    def __init__(self, bias=False):
        super().__init__()
        self.conv1 = nn.Conv2d(3, 8, 3, bias=bias)
        self.bn1 = nn.BatchNorm2d(8)
        self.relu1 = nn.ReLU()
        self.conv2 = nn.Conv2d(8, 10, 3, padding=1, bias=bias)
        self.bn2 = nn.BatchNorm2d(10)
        self.relu2 = nn.ReLU()
        self.pool = nn.AdaptiveAvgPool2d(1)
        self.flatten = nn.Flatten()
        self.out = nn.Linear(10, 4)

    def forward(self, x):
        x = self.relu2(self.bn2(self.conv2(self.relu1(self.bn1(self.conv1(x))))))
        return self.out(self.flatten(self.pool(x)))


def small(bias=False):
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        net = Small(bias)
        for bn in (net.bn1, net.bn2):
            nn.init.uniform_(bn.weight, 0.5, 1.5)
            nn.init.normal_(bn.bias)
            nn.init.normal_(bn.running_mean)
            nn.init.uniform_(bn.running_var, 0.5, 1.5)
    return net.eval()


EXAMPLE = torch.zeros(2, 3, 8, 8)
WIDTHS = {"conv1": 4, "conv2": 6}


def cut(net, label, pictures):
    found, tensors = cp.inspect(net, EXAMPLE), tensors_of(net)
    seen = see(net, found, found.sites, [pictures])
    choices = chosen(METHODS[label].choose, found, tensors, WIDTHS, seen=seen, seed=1)
    return found, seen, choices, carried_out(net, found, choices, EXAMPLE, {"method": label})


def by_hand(net, choices, x):
    """The dense network, with units replaced where they are made: h ≈ T h_S + t, and merged units computed."""
    found, tensors = cp.inspect(net, EXAMPLE), tensors_of(net)
    net, sites = copy.deepcopy(net), {site.name: site for site in found.sites}
    modules, before = dict(net.named_modules()), {}

    def replaced(name, h):
        choice = choices[name]
        T, t = choice.mixes[0].to(h.dtype), choice.offsets[0]
        if choice.merge is not None:
            units = units_of(sites[name], found, tensors)
            rows = choice.merge.rows.to(h.dtype)
            writer = modules[name]
            weight = torch.einsum("nk,nchw->kchw", rows, writer.weight)
            a = F.conv2d(before[name], weight, rows.T @ units.bias[:, 0].to(h.dtype), writer.stride, writer.padding)
            norm = choice.merge.norm
            kept = F.relu(norm(a.double().movedim(1, -1)).movedim(-1, 1).to(h.dtype))
        else:
            kept = h[:, choice.kept]
        full = torch.einsum("nk,bkhw->bnhw", T, kept) if T.dim() == 2 else torch.zeros_like(h).index_add_(
            1, choice.kept, kept * T[:, None, None])  # fmt: skip
        return full if t is None else full + t.to(h.dtype)[:, None, None]

    for name in choices:
        modules[name].register_forward_pre_hook(lambda m, a, name=name: before.__setitem__(name, a[0]))
        relu = modules[name.replace("conv", "relu")]
        relu.register_forward_hook(lambda m, a, h, name=name: replaced(name, h))
    with torch.no_grad():
        return net(x)


@pytest.mark.parametrize("bias", [False, True])
@pytest.mark.parametrize("label", METHODS)
def test_cut_networks_compute_what_the_choice_says(label, bias):
    net, x = small(bias), torch.randn(40, 3, 8, 8, generator=seeded(5))
    before = copy.deepcopy(net.state_dict())
    _, _, choices, carried = cut(net, label, x)
    network = carried.small.model
    assert (network.conv1.out_channels, network.bn2.num_features, network.out.in_features) == (4, 6, 6)
    expected = by_hand(net, choices, x)
    with torch.no_grad():
        found = network(x)
    if label == "FLAP":  # the constant is not seen beyond the border by hand either, where the padding is zero
        assert not carried.compared
        unpadded = cp.inspect(net, EXAMPLE)
        assert [bool(reader.bias) for one in unpadded.sites for reader in one.readers] == [False, True]
        gap = float((found - expected).abs().max())
        none = {name: selected(units_of(one, unpadded, tensors_of(net)), choices[name].kept) for one in unpadded.sites
                for name in [one.name]}  # fmt: skip
        assert 0 < gap < 0.5 * float((by_hand(net, none, x) - expected).abs().max())
    else:
        torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-4)
        assert carried.compared == (choices["conv1"].merge is None)
    assert all(torch.equal(before[name], value) for name, value in net.state_dict().items())


def test_a_wrong_merge_is_noticed():
    """The comparison by hand fails if the BatchNorm of a merged site keeps its old numbers."""
    net, x = small(), torch.randn(40, 3, 8, 8, generator=seeded(5))
    _, _, choices, carried = cut(net, "folding, Fold-AR", x)
    with torch.no_grad():
        carried.small.model.bn1.weight.copy_(net.bn1.weight[choices["conv1"].kept])
        gap = float((carried.small.model(x) - by_hand(net, choices, x)).abs().max())
    assert gap > 1e-2


def test_the_tensors_of_a_site_give_its_units():
    net, x = small(bias=True).double(), torch.randn(6, 3, 8, 8, generator=seeded(5), dtype=torch.float64)
    found = cp.inspect(net.float(), EXAMPLE)
    net.double()
    units = units_of(found.sites[0], found, tensors_of(net))
    with torch.no_grad():
        expected = net.relu1(net.bn1(net.conv1(x)))
        patches = F.unfold(x, 3).transpose(1, 2).reshape(-1, 27)
    got = F.relu(patches @ units.points[:, :27].T + units.points[:, 27])
    torch.testing.assert_close(got, expected.flatten(2).transpose(1, 2).reshape(-1, 8))
    assert units.readers[0].shape == (90, 8)
    assert float(units.readers[0].square().sum()) == pytest.approx(float(net.conv2.weight.detach().square().sum()))


class Gated(nn.Module):
    """y = W (silu(P x) ∘ U x)."""

    def __init__(self):
        super().__init__()
        self.gate, self.up = nn.Linear(6, 12, bias=False), nn.Linear(6, 12, bias=False)
        self.down = nn.Linear(12, 6, bias=False)

    def forward(self, x):
        return x + self.down(F.silu(self.gate(x)) * self.up(x))


@pytest.mark.parametrize("label", METHODS)
def test_gated_units(label):
    """Rows of gate and up are one unit's, and copies of both are merged without loss."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        net = Gated().eval()
    with torch.no_grad():
        for module in (net.gate, net.up):
            module.weight[6:] = module.weight[:6]
    x = torch.randn(30, 6, generator=seeded(1))
    found = cp.inspect(net, torch.zeros(2, 6))
    (one,) = [entry for entry in found.sites if entry.kind == "gated"]
    units = units_of(one, found, tensors_of(net))
    assert units.rows.shape == (12, 12)
    assert units.bias.shape == (12, 2)
    assert units.gated
    seen = see(net, found, [one], [x])
    choices = chosen(METHODS[label].choose, found, tensors_of(net), {one.name: 6}, seen=seen)
    carried = carried_out(net, found, choices, torch.zeros(2, 6), {"method": label})
    assert carried.small.model.up.out_features == carried.small.model.down.in_features == 6
    with torch.no_grad():
        small, dense = carried.small.model(x), net(x)
        h = (F.silu(net.gate(x)) * net.up(x)).double()
    if label == "folding":
        torch.testing.assert_close(small, dense)
    if label == "FLAP":  # a bias is made, and the outputs keep their means
        kept = choices[one.name].kept
        gone = [j for j in range(12) if j not in kept]
        torch.testing.assert_close(
            carried.small.model.down.bias, (net.down.weight[:, gone].double() @ h[:, gone].mean(0)).float()
        )
        torch.testing.assert_close(small.mean(0), dense.mean(0))


def bilinear(seed=0):
    """Six gated units, and each again with its gate row times a > 0 and its other row times b of any sign."""
    gate, up = drawn(6, 5, seed=seed), drawn(6, 5, seed=seed + 1)
    a, b = drawn(6, 1, seed=seed + 2).abs() + 0.2, drawn(6, 1, seed=seed + 3)
    rows = torch.cat([torch.cat([gate, up], 1), torch.cat([a * gate, b * up], 1)])
    units = Units(rows, rows.new_zeros(12, 2), (drawn(4, 12, seed=seed + 4),), gated=True)
    x = drawn(40, 5, seed=seed + 5)
    return units, F.relu(x @ rows[:, :5].T) * (x @ rows[:, 5:].T)


def test_gated_units_that_are_parallel_are_restored():
    units, h = bilinear()
    kept = torch.arange(6)
    for T in (merging.decomposed(units, kept), lbyl.restored(units, kept, 0.0, 1e-12)):
        torch.testing.assert_close(h[:, :6] @ T.T, h, rtol=1e-6, atol=1e-6)
        assert float((h[:, :6] @ T.abs().T - h).abs().max()) > 0.1  # signs count


def test_gated_units_are_restored_by_least_squares_on_tensors():
    units, kept = bilinear(3)[0], torch.tensor([0, 2, 3, 7, 10])
    tensors = torch.stack([torch.outer(row[:5], row[5:]).flatten() for row in units.rows])
    torch.testing.assert_close(units.products(kept), tensors @ tensors[kept].T)
    A = torch.cat([tensors[kept].T, 0.3**0.5 * torch.eye(5, dtype=torch.float64)])
    T = lbyl.restored(units, kept, 0.0, 0.3)
    for i in set(range(12)) - set(kept.tolist()):
        y = torch.cat([tensors[i], tensors.new_zeros(5)])
        torch.testing.assert_close(T[i], torch.linalg.lstsq(A, y[:, None]).solution[:, 0])


def test_stacks_are_cut_too():
    net = nn.Sequential(nn.Linear(6, 16), nn.ReLU(), nn.Linear(16, 12), nn.ReLU(), nn.Linear(12, 4)).eval()
    x = torch.randn(200, 6, generator=seeded(1))
    found = cp.inspect(net)
    seen = see(net, found, found.sites, [x[:150], x[150:]])
    with torch.no_grad():
        h = net[1](net[0](x)).double()
    torch.testing.assert_close(seen["0"][0].second, h.T @ h / 200)
    assert seen["0"][0].count == 200
    for label, method in METHODS.items():
        choices = chosen(method.choose, found, tensors_of(net), {"0": 9, "2": 5}, seen=seen)
        network = carried_out(net, found, choices, None, {"method": label}).small.model
        assert [m.out_features for m in network if isinstance(m, nn.Linear)] == [9, 5, 4]
        assert bool(torch.isfinite(network(x)).all())


def test_sites_that_no_baseline_speaks_of_are_refused():
    class Residual(nn.Module):
        def __init__(self):
            super().__init__()
            self.a, self.b, self.out = nn.Conv2d(3, 6, 1), nn.Conv2d(6, 6, 1), nn.Conv2d(6, 2, 1)
            self.bn1, self.bn2, self.relu = nn.BatchNorm2d(6), nn.BatchNorm2d(6), nn.ReLU()

        def forward(self, x):
            x = self.relu(self.bn1(self.a(x)))
            return self.out(x + self.bn2(self.b(x)))

    net = Residual().eval()
    found = cp.inspect(net, torch.zeros(2, 3, 4, 4))
    (one,) = [entry for entry in found.sites if len(found.makers[entry.name]) == 2]
    with pytest.raises(InvalidInputError, match="BatchNorms of their own"):
        units_of(one, found, tensors_of(net))

"""What holds for every input that Hypothesis can think of."""

from __future__ import annotations

import torch
from hypothesis import given
from hypothesis import strategies as st

from coreprune.budget import widths
from coreprune.maths.activation import activation
from coreprune.maths.layer import Layer
from coreprune.maths.sampling import coreset_of_layer, inclusion_probabilities
from coreprune.model.site import Location, parameters_after
from coreprune.model.stack import discover
from coreprune.surgery.edits import Mix, Take

values = st.floats(0, 1e6, allow_subnormal=False).map(lambda v: 0.0 if v < 1e-6 else v)
sizes = st.lists(values, min_size=1, max_size=40)


@given(sizes, st.integers(1, 50))
def test_inclusion_probabilities_are_probabilities_that_sum_to_k(s, k):
    pi = inclusion_probabilities(torch.tensor(s, dtype=torch.float64), k)
    positive = sum(v > 0 for v in s)
    assert bool(((pi >= 0) & (pi <= 1)).all())
    assert abs(float(pi.sum()) - min(k, positive)) < 1e-9
    assert all(p == 0 for p, v in zip(pi.tolist(), s, strict=True) if v == 0)
    assert all(p > 0 for p, v in zip(pi.tolist(), s, strict=True) if v > 0)


@given(sizes, st.integers(1, 40), st.floats(0.01, 100))
def test_inclusion_probabilities_do_not_know_the_unit_of_measure(s, k, c):
    one = inclusion_probabilities(torch.tensor(s, dtype=torch.float64), k)
    other = inclusion_probabilities(torch.tensor(s, dtype=torch.float64) * c, k)
    torch.testing.assert_close(one, other, rtol=1e-9, atol=1e-12)


@given(sizes, st.data())
def test_a_larger_size_is_never_less_likely(s, data):
    k = data.draw(st.integers(1, len(s)))
    pi = inclusion_probabilities(torch.tensor(s, dtype=torch.float64), k)
    order = torch.tensor(s, dtype=torch.float64).argsort()
    assert bool((pi[order].diff() >= 0).all())


@given(sizes, st.data())
def test_sampling_gives_exactly_k_with_finite_weights(s, data):
    k, seed = data.draw(st.integers(1, len(s))), data.draw(st.integers(0, 2**32))
    n = len(s)
    W = torch.tensor(s, dtype=torch.float64)[None]
    one = torch.ones(n, dtype=torch.float64)
    layer = Layer(one[:, None], one, W, activation("relu"), 1.0)
    coreset = coreset_of_layer(layer, units=k, generator=torch.Generator().manual_seed(seed))
    assert coreset.indices.unique().numel() == k
    assert bool(torch.isfinite(coreset.mix).all())
    assert int((coreset.mix > 0).sum()) == min(k, sum(v > 0 for v in s))


@given(st.integers(1, 5), st.integers(1, 3), st.integers(0, 2), st.integers(0, 2), st.data())
def test_take_is_the_mix_with_a_selection_matrix(n, span, before, after, data):
    kept = torch.tensor(data.draw(st.lists(st.integers(0, n - 1), min_size=1, unique=True)))
    axis = data.draw(st.integers(0, 2))
    shape = [2, 3, 2]
    shape[axis] = before + n * span + after
    value = torch.arange(float(torch.tensor(shape).prod())).reshape(shape)
    at = Location("w", axis, before, span)
    select = torch.zeros(n, len(kept))
    select[kept, torch.arange(len(kept))] = 1
    assert torch.equal(Take(at, kept, n)(value), Mix(at, select)(value))


@given(st.lists(st.integers(1, 12), min_size=3, max_size=6), st.floats(0, 1, exclude_max=True))
def test_remove_keeps_the_budget_and_wastes_at_most_a_unit_per_site(shape, remove):
    model = torch.nn.Sequential()
    for i in range(len(shape) - 1):
        model.append(torch.nn.Linear(shape[i], shape[i + 1])).append(torch.nn.ReLU())
    found = discover(model)
    dense = parameters_after(found.shapes, [], {})
    least = parameters_after(found.shapes, found.sites, {site.name: 1 for site in found.sites})
    if least > (1 - remove) * dense:
        return  # refused, and tested elsewhere
    kept = widths(found, remove=remove)
    assert parameters_after(found.shapes, found.sites, kept) <= (1 - remove) * dense + 1e-9
    wider = {site.name: min(site.units, kept[site.name] + 1) for site in found.sites}
    assert wider == kept or parameters_after(found.shapes, found.sites, wider) > (1 - remove) * dense

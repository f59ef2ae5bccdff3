"""What each operator does to units, against the only thing that counts: taking them out changes nothing else.

Every row is a small function of parameters. For each site that is found some units are taken out of every place that
they are said to own; the result must be the dense function whose readers have zeros where these units were. Nothing of
the surgery is used, only indexing. Rows say how many units there must be, so that nothing passes by being refused.
"""

from __future__ import annotations

import re
import warnings

import pytest
import torch
from operators import EQUAL, REFUSED, Net, normal
from torch.func import functional_call

from coreprune.model.network import discover_network
from coreprune.model.rules import RULES


def found_in(row):
    model = Net(row)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return model, discover_network(model, row.x if isinstance(row.x, torch.Tensor) else normal(*row.x))


def taken(tensors, site, kept):
    """Every place of the site without the other units."""
    gone = {}
    for at in dict.fromkeys(site.locations):
        if at.tensor in tensors:
            alive = gone.setdefault(
                (at.tensor, at.axis), torch.ones(tensors[at.tensor].shape[at.axis], dtype=torch.bool)
            )
            entries = at.entries(site.units)
            alive[entries.flatten()] = False
            alive[entries[kept].flatten()] = True
    result = dict(tensors)
    for (name, axis), alive in gone.items():
        result[name] = result[name].index_select(axis, alive.nonzero()[:, 0])
    return result


def silenced(tensors, site, kept):
    """The dense tensors with zeros where readers read the other units."""
    rest = [j for j in range(site.units) if j not in kept]
    result = dict(tensors)
    for reader in site.readers:
        at = reader.weight
        result[at.tensor] = result[at.tensor].index_fill(at.axis, at.entries(site.units)[rest].flatten(), 0.0)
    return result


def gap(model, site, x, kept):
    tensors = {name: t.detach() for name, t in [*model.named_parameters(), *model.named_buffers()]}
    with torch.no_grad():
        dense = functional_call(model, silenced(tensors, site, kept), (x,))
        small = functional_call(model, taken(tensors, site, kept), (x,))
        whole = functional_call(model, tensors, (x,))
    dense, small, whole = (v if isinstance(v, tuple) else (v,) for v in (dense, small, whole))
    matters = any(not torch.allclose(a, b) for a, b in zip(whole, dense, strict=True))
    return matters, max(float((a - b).abs().max() / a.abs().max()) for a, b in zip(dense, small, strict=True))


def agrees(row):
    model, found = found_in(row)
    assert {site.name: site.units for site in found.sites} == row.units, [
        f"{r.name}: {r.reason}" for r in found.refused
    ]
    x = row.x if isinstance(row.x, torch.Tensor) else normal(*row.x, seed=99)
    for site in found.sites:
        some = [gap(model, site, x, kept) for kept in ([0, *range(2, site.units)], list(range(1, site.units, 2)))]
        assert any(matters for matters, _ in some), "the readers do not matter"
        assert all(difference < 1e-10 for _, difference in some), (site.name, some)


def refused(row):
    """Reasons of all refusals of a network without a site."""
    _, found = found_in(row)
    assert not found.sites, found.sites
    return " | ".join(f"{r.name}: {r.reason}" for r in found.refused)


@pytest.mark.parametrize("name", EQUAL)
def test_units_can_be_taken_out(name):
    agrees(EQUAL[name])


@pytest.mark.parametrize("name", REFUSED)
def test_units_that_cannot_go_are_refused_with_the_reason(name):
    row, reason = REFUSED[name]
    said = refused(row)
    if reason:
        assert re.search(reason, said), said


#: operators of other libraries
ELSEWHERE = {"transformers.grouped_mm_fallback"}


def test_every_rule_is_for_an_operator_that_there_is():
    names = [name for name in RULES if name not in ELSEWHERE]
    assert all(name.startswith("aten.") for name in names)
    assert [name for name in names if not hasattr(torch.ops.aten, name.removeprefix("aten."))] == []

from __future__ import annotations

import math
import random
import time

import numpy as np
import pytest
from helpers import lenet_like

from coreprune.budget import alike, matching, widths
from coreprune.errors import InvalidInputError, UnknownNameError
from coreprune.model.site import Inspection, Location, Reader, Site, parameters_after
from coreprune.model.size import Size
from coreprune.model.stack import discover

FOUND = discover(lenet_like())  # sites "0" with 16 units and "2" with 12
DENSE = parameters_after(FOUND.shapes, [], {})


@pytest.mark.parametrize(
    ("pattern", "names"),
    [("0", ["0"]), ("*", ["0", "2"]), ("[2-9]", ["2"]), ("re:^[02]$", ["0", "2"]), ("re:2", ["2"])],
)
def test_patterns(pattern, names):
    assert [site.name for site in matching(FOUND.sites, pattern)] == names


@pytest.mark.parametrize("pattern", ["", "1", "fc*", "re:x", "00"])
def test_a_pattern_that_means_nothing_is_refused_with_the_sites(pattern):
    with pytest.raises(UnknownNameError, match="0, 2"):
        matching(FOUND.sites, pattern)


def test_a_pattern_that_is_no_regular_expression_is_refused():
    with pytest.raises((UnknownNameError, InvalidInputError)):
        matching(FOUND.sites, "re:(")


@pytest.mark.parametrize("remove", [0.01, 0.1, 0.25, 0.5, 0.75, 0.9])
def test_remove_meets_the_budget_and_no_wider_network_would(remove):
    kept = widths(FOUND, remove=remove)
    wider = {name: units + 1 for name, units in kept.items()}
    assert parameters_after(FOUND.shapes, FOUND.sites, kept) <= (1 - remove) * DENSE
    assert parameters_after(FOUND.shapes, FOUND.sites, wider) > (1 - remove) * DENSE


def test_remove_nothing_keeps_everything():
    assert widths(FOUND, remove=0) == {"0": 16, "2": 12}


def test_remove_takes_the_same_share_of_every_site():
    kept = widths(FOUND, remove=0.5)
    assert abs(kept["0"] / 16 - kept["2"] / 12) < 1 / 12


def test_remove_with_ignored_sites_meets_the_budget_in_the_others():
    kept = widths(FOUND, remove=0.3, ignore=["2"])
    assert set(kept) == {"0"}
    assert parameters_after(FOUND.shapes, FOUND.sites, kept) <= 0.7 * DENSE


def test_remove_more_than_one_unit_per_site_allows():
    least = parameters_after(FOUND.shapes, FOUND.sites, {"0": 1, "2": 1})
    assert widths(FOUND, remove=math.floor(1000 * (1 - least / DENSE)) / 1000) is not None
    with pytest.raises(InvalidInputError, match="at most"):
        widths(FOUND, remove=1 - (least - 1) / DENSE)


def test_remove_with_every_site_ignored_is_refused():
    with pytest.raises(InvalidInputError):
        widths(FOUND, remove=0.1, ignore=["*"])


def test_fractions_of_units_by_site():
    assert widths(FOUND, remove={"0": 0.25}) == {"0": 12}
    assert widths(FOUND, remove={"*": 0.5}) == {"0": 8, "2": 6}
    assert widths(FOUND, remove={"*": 0.999}) == {"0": 1, "2": 1}
    assert widths(FOUND, remove={"*": 0.5, "2": 0.0}) == {"0": 8, "2": 12}


def test_exact_units():
    assert widths(FOUND, units={"0": 3}) == {"0": 3}
    assert widths(FOUND, units={"*": 12, "0": 16}) == {"0": 16, "2": 12}


@pytest.mark.parametrize("remove", [-0.1, 1, 1.0, 1.5, math.nan, math.inf, "0.5", True, {"0": 1.0}, {"0": -1}], ids=str)
def test_remove_outside_its_range(remove):
    with pytest.raises(InvalidInputError, match="remove="):
        widths(FOUND, remove=remove)


@pytest.mark.parametrize("count", [0, -1, 17, 2.0, 2.5, True, "3", None], ids=str)
def test_units_that_cannot_be_had(count):
    with pytest.raises(InvalidInputError, match="1 to 16"):
        widths(FOUND, units={"0": count})


@pytest.mark.parametrize("request_", [{}, {"remove": 0.5, "units": {"0": 3}}], ids=str)
def test_exactly_one_of_remove_and_units(request_):
    with pytest.raises(InvalidInputError, match="either"):
        widths(FOUND, **request_)


@pytest.mark.parametrize(
    "request_", [{"remove": 0.5, "ignore": ["x"]}, {"remove": {"x": 0.5}}, {"units": {"x": 1}}], ids=str
)
def test_unknown_sites(request_):
    with pytest.raises(UnknownNameError, match="'x'"):
        widths(FOUND, **request_)


def blocks(*counts: int, width: int = 8) -> Inspection:
    """A transformer's wiring: in block i an inner layer of counts[i] units and 4 heads, without biases."""
    shapes, sites = {"embed.weight": (20, width)}, []
    for i, n in enumerate(counts):
        name = f"layer.{i}"
        shapes |= {f"{name}.{p}.weight": (width, width) for p in "qkvo"}
        shapes |= {f"{name}.up.weight": (n, width), f"{name}.up.bias": (n,), f"{name}.down.weight": (width, n)}
        q, k, v, o = (Location(f"{name}.{p}.weight", int(p == "o"), 0, width // 4) for p in "qkvo")
        at = Location(f"{name}.v.bias", 0, 0, width // 4)
        sites.append(Site(f"{name}.v", "heads", 4, "identity", (), v, at, (Reader(o, ""),), (q, k)))
        inner = Location(f"{name}.up.weight", 0), Location(f"{name}.up.bias", 0)
        reader = Reader(Location(f"{name}.down.weight", 1), f"{name}.down.bias")
        sites.append(Site(f"{name}.up", "linear", n, "relu", (), *inner, (reader,)))
    return Inspection(tuple(sites), (), shapes, width)


def random_wiring(seed: int) -> Inspection:
    """Sites that share axes (concatenation), tensors with two of their axes in one site, biases shared and made."""
    r = random.Random(seed)
    tensors = {f"t{i}.weight": [0, 0, 3, 3][: r.choice([2, 4])] for i in range(6)}
    vectors = {f"v{i}": [0] for i in range(4)}
    sites, end = [], {**tensors, **vectors}

    def place(tensor: str, axis: int, units: int) -> Location:
        span = r.choice([1, 1, 3])
        start = end[tensor][axis]
        end[tensor][axis] += span * units
        return Location(tensor, axis, start, span)

    for i in range(7):
        n = r.randint(1, 9)
        pick = lambda n=n: place(r.choice(list(tensors)), r.randint(0, 1), n)  # noqa: E731
        readers = tuple(
            Reader(pick(), r.choice(["", "v0", "made0", "made1"]), outputs=0) for _ in range(r.randint(1, 3))
        )
        others = tuple(place(r.choice(list(vectors)), 0, n) for _ in range(r.randint(0, 2)))
        sites.append(Site(f"s{i}", "conv", n, "relu", (), pick(), Location("nowhere", 0), readers, others))
    shapes = {name: tuple(max(size, 2) for size in shape) for name, shape in end.items()}
    first = {name: shapes[next(x.weight.tensor for s in sites for x in s.readers if x.bias == name)][0]
             for name in ("made0", "made1") if any(x.bias == name for s in sites for x in s.readers)}  # fmt: skip
    readers = [
        Site(s.name, s.kind, s.units, s.activation, (), s.incoming, s.bias,
             tuple(Reader(x.weight, x.bias if shapes[x.weight.tensor][0] == first.get(x.bias, -1) else "") for x in s.readers),
             s.others) for s in sites
    ]  # fmt: skip
    return Inspection(tuple(readers), (), shapes, 0)


@pytest.mark.parametrize("seed", range(40))
def test_size_is_parameters_after(seed):
    """For any widths, and for each group moved alone."""
    found, r = random_wiring(seed), random.Random(seed)
    by_width: dict[int, list[Site]] = {}
    for site in found.sites:
        by_width.setdefault(site.units, []).append(site)
    for groups in ([[site] for site in found.sites], list(by_width.values())):
        size = Size(found.shapes, groups)

        def plain(kept, groups=groups):
            named = {site.name: int(k) for group, k in zip(groups, kept, strict=True) for site in group}
            return parameters_after(found.shapes, found.sites, named)

        for low in (0, 1, 1):
            kept = np.array([r.randint(low, group[0].units) for group in groups])
            by = np.array([r.randint(-int(k), group[0].units - int(k)) for group, k in zip(groups, kept, strict=True)])
            assert size(kept) == plain(kept)
            alone = [plain(kept + by * (np.arange(len(kept)) == g)) - plain(kept) for g in range(len(groups))]
            assert size.moved(kept, by).tolist() == alone


def test_wirings_make_biases_and_share_axes():
    found = [random_wiring(seed) for seed in range(40)]
    assert sum(any(x.bias.startswith("made") for s in f.sites for x in s.readers) for f in found) > 20
    ends = [(at.tensor, at.axis) for s in found[0].sites for at in s.locations]
    assert len(set(ends)) < len(ends)


def test_size_without_sites():
    empty = np.zeros(0, dtype=np.int64)
    size = Size({"w": (3, 4), "b": ()}, [])
    assert size(empty) == 13
    assert size.moved(empty, 1).shape == (0,)


def test_two_hundred_sites_take_less_than_a_second():
    found = blocks(*[512] * 100, width=256)
    assert len(found.sites) == 200
    start = time.perf_counter()
    kept = widths(found, remove=0.5)
    assert time.perf_counter() - start < 1
    assert parameters_after(found.shapes, found.sites, kept) <= 0.5 * parameters_after(found.shapes, [], {})


@pytest.mark.parametrize(
    ("asked", "kept"), [(0.0, 50), (0.02, 48), (0.1, 48), (0.16, 40), (0.25, 40), (0.7, 16), (0.95, 8)]
)
def test_rounded_fractions(asked, kept):
    """To the nearest multiple of 8, halves up; what is whole stays whole, and one multiple is the least."""
    assert widths(blocks(50), remove={"*.up": asked}, round_to=8) == {"layer.0.up": kept}


@pytest.mark.parametrize("remove", [0.1, 0.25, 0.4])
@pytest.mark.parametrize("round_to", [1, 3, 8])
def test_a_rounded_network_meets_the_budget(remove, round_to):
    found = blocks(50, 40, 24)
    kept = widths(found, remove=remove, round_to=round_to)
    for site in found.sites:
        assert kept[site.name] % round_to == 0 or kept[site.name] == site.units
        assert kept[site.name] >= min(round_to, site.units)
    assert parameters_after(found.shapes, found.sites, kept) <= (1 - remove) * parameters_after(found.shapes, [], {})


def test_what_is_narrower_than_the_multiple_stays_whole():
    kept = widths(blocks(50), remove=0.3, round_to=8)
    assert kept["layer.0.v"] == 4
    assert kept["layer.0.up"] < 50
    assert widths(blocks(50), remove={"*": 0.5}, round_to=8) == {"layer.0.v": 4, "layer.0.up": 24}


def test_rounded_exact_widths_are_refused():
    with pytest.raises(InvalidInputError, match="round_to= was asked with units="):
        widths(FOUND, units={"0": 3}, round_to=2)


@pytest.mark.parametrize("round_to", [0, -8, 2.0, True, "8"], ids=str)
def test_round_to_must_be_a_whole_number(round_to):
    with pytest.raises(InvalidInputError, match="round_to="):
        widths(FOUND, remove=0.5, round_to=round_to)


def test_alike():
    found = blocks(16, 16, 24)
    assert alike(found.sites) == [
        ("layer.0.v", "layer.1.v", "layer.2.v"), ("layer.0.up", "layer.1.up"), ("layer.2.up",)
    ]  # fmt: skip


def test_alike_needs_one_kind_and_one_name():
    sites = blocks(4, 4).sites
    assert ("layer.0.v", "layer.0.up") not in alike(sites)
    assert all(len({name.split(".")[-1] for name in group}) == 1 for group in alike(sites))


def test_uniform_requests():
    found = blocks(16, 16)
    assert widths(found, units={"*.up": 5}, uniform=True) == {"layer.0.up": 5, "layer.1.up": 5}
    assert widths(found, units={"layer.0.up": 5}, uniform=False) == {"layer.0.up": 5}
    for request in (
        {"units": {"layer.0.up": 5}},
        {"remove": {"layer.0.up": 0.5}},
        {"units": {"*.up": 5, "layer.1.up": 6}},
    ):
        with pytest.raises(InvalidInputError, match=r"layer\.\*\.up"):
            widths(found, **request, uniform=True)


@pytest.mark.parametrize("request_", [{"remove": 0.2}, {"units": {"*": 2}}], ids=str)
def test_uniform_with_one_block_ignored_is_refused(request_):
    with pytest.raises(InvalidInputError, match=r"'layer.1.up' is left whole.*uniform=False"):
        widths(blocks(16, 16), **request_, ignore=["layer.1.up"], uniform=True)
    assert "layer.1.up" not in widths(blocks(16, 16), **request_, ignore=["layer.1.up"])
    assert "layer.1.up" not in widths(blocks(16, 16), **request_, ignore=["*.up"], uniform=True)


def test_groups_by_name():
    found = blocks(16, 16, 24)
    with pytest.raises(InvalidInputError, match="group them by width"):
        widths(found, remove=0.2, uniform=[("layer.0.up", "layer.2.up")])
    with pytest.raises(UnknownNameError, match="'x'"):
        widths(found, remove=0.2, uniform=[("x",)])
    with pytest.raises(InvalidInputError, match="two groups"):
        widths(found, remove=0.2, uniform=[("layer.0.up",), ("layer.1.up", "layer.0.up")])
    with pytest.raises(InvalidInputError, match="get one width"):
        widths(found, units={"layer.0.up": 3}, uniform=[("layer.0.up", "layer.1.up")])


def test_kinds():
    found = blocks(16, 16)
    assert set(widths(found, remove=0.2, kinds=["linear"])) == {"layer.0.up", "layer.1.up"}
    assert set(widths(found, remove=0.2, kinds="heads")) == {"layer.0.v", "layer.1.v"}
    assert widths(found, remove=0.2, kinds=["heads", "linear"]) == widths(found, remove=0.2)
    assert widths(found, units={"*": 2}, kinds=["heads"]) == {"layer.0.v": 2, "layer.1.v": 2}
    with pytest.raises(UnknownNameError, match="'ffn' is not a kind"):
        widths(found, remove=0.2, kinds=["ffn"])
    with pytest.raises(InvalidInputError, match="there are sites of kind heads, linear"):
        widths(found, remove=0.2, kinds=["conv"])

from __future__ import annotations

import math

import pytest
from helpers import lenet_like

from coreprune.budget import matching, widths
from coreprune.errors import InvalidInputError, UnknownNameError
from coreprune.model.site import parameters_after
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

"""The page says what the numbers say, escapes everything, and replaces nothing that is not its own."""

from __future__ import annotations

import json
import re
import sys
from dataclasses import replace
from html.parser import HTMLParser
from xml.etree import ElementTree

import pytest
import torch
from torch import nn

import coreprune as cp
from coreprune.errors import CheckpointError, CorepruneError
from coreprune.report import figures
from coreprune.report.cost import Change, Cost
from coreprune.report.notebook import repr_html
from coreprune.report.numbers import numbers
from coreprune.report.page import _count, page, write
from coreprune.report.speed import seconds_text
from coreprune.report.text import bytes_text, digits
from coreprune.report.turns import Latency
from report.results import EVIL, evil, made, saved, site, stack, structure

VOID = {"meta", "link", "img", "br", "hr", "input"}


class Tree(HTMLParser):
    """Elements with their attributes and texts; raises where tags do not match."""

    def __init__(self, html: str) -> None:
        super().__init__()
        self.open: list[str] = []
        self.seen: list[tuple[str, dict[str, str | None]]] = []
        self.texts: list[str] = []
        self.feed(html)
        assert not self.open, self.open

    def handle_starttag(self, tag, attrs):
        self.seen.append((tag, dict(attrs)))
        if tag not in VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag, attrs):
        self.seen.append((tag, dict(attrs)))

    def handle_endtag(self, tag):
        assert self.open.pop() == tag

    def handle_data(self, data):
        self.texts.append(data)

    @property
    def text(self) -> str:
        return " ".join(" ".join(self.texts).split())


@pytest.fixture
def small(tmp_path):
    return saved(tmp_path / "small", stack(), units={"0": 7, "2": 5})


def test_the_page_says_what_the_numbers_say(small):
    pruned, found = small
    text = Tree(page(found, "report.json")).text
    assert f"{1 - pruned.parameters / pruned.dense_parameters:.1%}" in text
    for row in found.sites:
        assert f"{row.after} of {row.before}" in text
        assert f"{row.error:.1%}" in text
        assert digits(row.within) in text
    assert found.prior in text
    assert " ".join(found.python.split()) in text


def test_the_page_needs_nothing_else(small):
    html = page(small[1])
    seen = Tree(html).seen
    assert not [tag for tag, _ in seen if tag in {"script", "img", "iframe", "object", "form"}]
    links = [value for tag, given in seen for key, value in given.items() if key in {"src", "href", "xlink:href"}]
    assert links == ["data:,"]
    assert not re.search(r"@import|url\(|https?:", html)
    assert "default-src 'none'" in html


def test_names_and_texts_of_files_are_escaped():
    html = page(evil(), '"><script>.json')
    seen = Tree(html).seen
    assert not [tag for tag, _ in seen if tag in {"script", "img"}]
    assert not [key for _, given in seen for key in given if key.startswith("on")]
    assert EVIL not in html
    assert Tree(html).text.count("alert") >= 8


def test_the_test_of_escapes_can_fail(monkeypatch):
    monkeypatch.setattr("coreprune.report.svg.escape", str)
    with pytest.raises(AssertionError):
        test_names_and_texts_of_files_are_escaped()


@pytest.mark.parametrize("draw", [figures.widths_wide, figures.widths_narrow, lambda n: figures.curves(n.sites)])
@pytest.mark.parametrize("count", [1, 3, 14, 15, 200])
def test_pictures_are_well_formed_and_say_in_words_what_they_show(draw, count):
    numbers_ = made(count)
    svg = ElementTree.fromstring(str(draw(numbers_)))
    assert svg.get("role") == "img"
    assert svg.find("title").text
    assert "64" in svg.find("desc").text
    assert svg.find("title").text in svg.get("aria-label")
    wide, tall = (float(n) for n in svg.get("viewBox").split()[2:])
    for rect in svg.iter("rect"):
        x, y, w, h = (float(rect.get(key)) for key in ("x", "y", "width", "height"))
        assert min(w, h) > 0
        assert -0.11 <= x <= x + w <= wide + 0.11
        assert -0.11 <= y <= y + h <= tall + 0.11


def bars(svg, kind):
    return [rect for rect in ElementTree.fromstring(str(svg)).iter("rect") if rect.get("class") == kind]


def test_bars_are_as_long_as_the_units(small):
    _, found = small
    before, after = (bars(figures.widths_wide(found), kind) for kind in ("before", "after"))
    scale = float(before[0].get("height")) / 16
    for row, b, a in zip(found.sites, before, after, strict=True):
        assert float(b.get("height")) == pytest.approx(scale * row.before, abs=0.06)
        assert float(a.get("height")) == pytest.approx(scale * row.after, abs=0.06)
    errors = [float(bar.get("height")) for bar in bars(figures.widths_wide(found), "error")]
    assert errors[1] / errors[0] == pytest.approx(found.sites[1].error / found.sites[0].error, rel=0.01)


def test_an_area_joins_only_sites_of_which_one_reads_the_other():
    def flows(reads):
        rows = [(site("a", 8, reads=reads), 4, {}), (site("b", 8), 4, {})]
        drawn = ElementTree.fromstring(str(figures.widths_wide(numbers(structure(rows), "x"))))
        return [path for path in drawn.iter("path") if path.get("class") == "flow"]

    assert len(flows("b")) == 1
    assert flows("c") == []


def test_a_curve_goes_through_its_points_and_marks_what_was_chosen():
    drawn = ElementTree.fromstring(str(figures.curves(made(1).sites)))
    (line,) = [path for path in drawn.iter("path") if path.get("class") == "line"]
    points = [tuple(map(float, p.split())) for p in line.get("d")[1:].split("L")]
    assert len(points) == 4
    assert points[0][1] < points[1][1] < points[2][1] < points[3][1]  # downwards, as y grows
    (dot,) = drawn.iter("circle")
    assert (float(dot.get("cx")), float(dot.get("cy"))) == points[1]
    assert "16 units, error 50.0%" in dot.find("title").text


def test_where_errors_are_of_a_site_alone_the_dot_is_the_cut_that_was_made():
    drawn = ElementTree.fromstring(str(figures.curves(made(1).sites, alone=True)))
    (dot,) = drawn.iter("circle")
    assert "16 units, error 10.0%" in dot.find("title").text  # as the evidence says, below the closed form's 50 %
    assert float(dot.get("cy")) == pytest.approx(8 + (132 - 20 - 8) * 0.9)


def test_alike_sites_share_a_line_that_opens():
    tree = Tree(page(made(30)))
    assert [tag for tag, _ in tree.seen].count("details") == 1
    assert "each of the 30" in tree.text
    assert "10.0% to 12.9%" in tree.text
    assert "block.29.mlp" in tree.text


def test_many_refusals_are_folded_and_alike_ones_counted():
    few = page(made(1, refused=[["a.0", "x"], ["a.1", "x"], ["b", "y"]]))
    assert "a.*" in few
    assert "(2)" in few
    assert "<details>" not in few
    many = page(made(1, refused=[[f"a{i}", "x"] for i in range(9)]))
    assert "9 reasons" in many
    assert "Nothing was refused" in page(made(1, refused=[]))
    assert "It was not written down with this result" in page(made(1))


def test_a_plan_that_cuts_nothing_has_a_page():
    assert "Nothing was cut" in Tree(page(made(0))).text


def test_json_is_written_beside_and_says_the_same(small, tmp_path):
    _, found = small
    path = write(tmp_path / "r" / "report.html", found)
    assert json.loads(path.with_suffix(".json").read_text()) == json.loads(json.dumps(found.to_json()))
    assert path.read_text() == page(found, "report.json")
    assert sorted(file.name for file in path.parent.iterdir()) == ["report.html", "report.json"]
    write(path, made(2))
    assert "made" in path.read_text()


@pytest.mark.parametrize("name", ["report.html", "report.json"])
def test_files_of_others_are_not_replaced(small, tmp_path, name):
    (tmp_path / name).write_text("precious")
    with pytest.raises(CheckpointError, match="--force"):
        write(tmp_path / "report.html", small[1])
    assert (tmp_path / name).read_text() == "precious"
    write(tmp_path / "report.html", small[1], force=True)
    assert (tmp_path / name).read_text() != "precious"


def test_places_that_cannot_be_written_are_told(small, tmp_path):
    with pytest.raises(CheckpointError, match=r"\.html"):
        write(tmp_path / "report", small[1])
    (tmp_path / "file").write_text("")
    with pytest.raises(CheckpointError, match="cannot write"):
        write(tmp_path / "file" / "report.html", small[1])


def test_nothing_is_written_without_jinja2(small, tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "jinja2", None)
    with pytest.raises(CorepruneError, match=r"coreprune\[report\]"):
        write(tmp_path / "r.html", small[1])
    assert not (tmp_path / "r.html").exists()
    assert not (tmp_path / "r.json").exists()


def test_what_a_notebook_shows(small):
    pruned, _ = small
    html = repr_html(pruned.plan, (pruned.dense_parameters, pruned.dense_bytes), (pruned.parameters, pruned.bytes))
    tree = Tree(html)
    assert f"{pruned.dense_parameters} → {pruned.parameters} parameters" in tree.text
    assert [tag for tag, _ in tree.seen].count("tr") == 3
    assert f"{pruned.plan.cuts[0].evidence['relative_error']:.1%}" in tree.text


def conv_net():
    torch.manual_seed(0)
    net = nn.Sequential(
        nn.Conv2d(1, 6, 3), nn.BatchNorm2d(6), nn.ReLU(), nn.Conv2d(6, 4, 3), nn.Flatten(), nn.Linear(64, 3)
    )
    return net.eval(), torch.zeros(2, 1, 8, 8)


def test_what_a_training_changed_is_told(tmp_path):
    net, x = conv_net()
    better = cp.distill(cp.prune(net, x, remove={"*": 0.5}), net, steps=10, rate=1e-3, loss="squares")
    tree = Tree(better.report(tmp_path / "r.html").read_text())
    facts = better.plan.recipe["distilled"]
    assert "then the rest was trained without data" in tree.text
    assert "error before training" in tree.text
    assert f"went from {facts['before']:.4g} to {facts['after']:.4g}" in tree.text
    assert "cp.distill(" in tree.text


def test_the_calls_of_a_page_can_be_run(tmp_path):
    net, x = conv_net()
    small = cp.prune(net, x, remove={"*": 0.5}, prior="noise")
    found = numbers(small._structure(small._tensors()), "x")
    given: dict = {"model": net}
    exec(found.python, given)
    assert all(
        torch.equal(a, b) for a, b in zip(given["small"].model.parameters(), small.model.parameters(), strict=True)
    )
    place = json.dumps(str(tmp_path / "small"))
    given = {"small": small, "make_model": conv_net()[0].train}
    exec(found.load.replace('"small"', place), given)
    assert not given["model"].training
    assert torch.equal(given["model"](x), small.model(x))


def test_a_page_of_nothing_cut_speaks_of_no_error(tmp_path):
    text = Tree(page(made(0))).text
    assert "this network is the dense one" in text
    assert "Prior:" not in text
    assert "seed" in Tree(page(made(1))).text


def test_times_that_overlap_are_no_gain():
    def told(after):
        times = Latency(1.0, after, (0.9, 1.1), (0.9 * after, 1.1 * after), 9, 1, "cpu")
        return Tree(page(replace(made(1), cost=Cost("x", Change(10, 5), times)))).text

    assert "no clear difference" in told(0.95)
    assert "× as fast" not in told(0.95)
    assert "2.00× as fast" in told(0.5)


def test_numbers_are_written_without_exponents():
    assert (_count(999_700_000), _count(1536)) == ("1 G", "1,536")
    assert (digits(3184.0), digits(0.5), digits(1e12)) == ("3,180", "0.5", "1e+12")
    assert (bytes_text(999_600), seconds_text(0.9996)) == ("1 MB", "1 s")

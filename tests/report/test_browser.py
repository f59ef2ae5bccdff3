"""The page in a browser: no complaint, and nothing to scroll sideways on a telephone."""

from __future__ import annotations

import json
import re
import shutil
import subprocess
from html import escape, unescape

import pytest

from coreprune.report.page import write
from report.results import evil, made, saved, stack

BROWSER = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
pytestmark = pytest.mark.skipif(BROWSER is None, reason="no Chromium is installed")
#: put into a copy of the page, without the policy that forbids scripts
MEASURE = """<script>
for (const one of document.querySelectorAll("details")) one.open = true;
const wide = [...document.querySelectorAll("body *")].filter(e => e.getBoundingClientRect().right > innerWidth + 0.5);
const shown = e => getComputedStyle(e).display !== "none";
const pictures = [...document.querySelectorAll("figure > svg")].filter(shown).map(e => e.getAttribute("class"));
parent.document.documentElement.setAttribute("data-measured", JSON.stringify({
  inner: innerWidth, scroll: document.documentElement.scrollWidth, wide: wide.map(e => e.outerHTML.slice(0, 80)),
  pictures: pictures, paper: getComputedStyle(document.documentElement).backgroundColor,
}));
</script>"""


def browse(file, width, *options):
    command = [BROWSER, "--headless", "--no-sandbox", "--disable-gpu", "--enable-logging=stderr", "--dump-dom"]
    command += [f"--window-size={width},900", f"--user-data-dir={file.parent}/profile", *options, file.as_uri()]
    done = subprocess.run(command, capture_output=True, text=True, timeout=120, check=True)
    complaints = [line for line in done.stderr.splitlines() if "CONSOLE" in line]
    return done.stdout, complaints


def measured(path, width, *options):
    html = path.read_text()
    free = re.sub(r"<meta http-equiv[^>]*>", "", html).replace("</body>", f"{MEASURE}</body>")
    assert free.count("<script>") == 1
    copy = path.with_name("measured.html")  # in a frame, as a headless window is not as narrow as a telephone
    frame = f'<iframe width="{width}" height="900" style="border:0" srcdoc="{escape(free)}"></iframe>'
    copy.write_text(f'<!DOCTYPE html><meta charset="utf-8"><body style="margin:0">{frame}</body>')
    dom, complaints = browse(copy, width, *options)
    assert complaints == []
    (found,) = re.findall(r'^<html data-measured="([^"]*)"', dom, re.MULTILINE)
    return json.loads(unescape(found))


@pytest.fixture(params=["stack", "many", "evil"])
def path(request, tmp_path):
    found = {
        "stack": lambda: saved(tmp_path / "small", stack(), units={"0": 7, "2": 5})[1],
        "many": lambda: made(120, "a.rather.long.name.of.a.module.block{}.conv"),
        "evil": evil,
    }[request.param]()
    return write(tmp_path / "report.html", found)


def test_no_complaint_and_no_script_runs(path):
    dom, complaints = browse(path, 900)
    assert complaints == []
    assert "<h1>" in dom


@pytest.mark.parametrize("width", [360, 900])
def test_nothing_is_wider_than_the_window(path, width):
    found = measured(path, width)
    assert found["inner"] == width
    assert found["scroll"] <= width
    assert found["wide"] == []
    assert found["pictures"][0] == ("narrow" if width == 360 else "wide")


def test_dark_where_that_is_preferred(path):
    dark = measured(path, 900, "--blink-settings=preferredColorScheme=0")["paper"]
    light = measured(path, 900, "--blink-settings=preferredColorScheme=1")["paper"]
    assert sum(map(int, re.findall(r"\d+", dark))) < 150 < 600 < sum(map(int, re.findall(r"\d+", light)))


def test_a_page_that_is_too_wide_is_seen(path):
    """The check above can fail."""
    path.write_text(path.read_text().replace("<h1>", '<h1 style="width:2000px">'))
    assert measured(path, 360)["scroll"] > 360

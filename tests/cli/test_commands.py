"""Each command does what its Python verb does, prints data to stdout, and leaves stderr empty."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from helpers import equal_states, lenet_like, two_sites, wider
from safetensors.torch import save_file

import coreprune as cp
from coreprune.demo import architecture
from coreprune.demo import run as demo_run

MODEL = "helpers:two_sites"
SAMPLED = ["--method", "sampling"]


def good(result):
    code, out, err = result
    assert (code, err) == (0, "")
    return out


def test_inspect(command):
    out = good(command("inspect", MODEL))
    assert "16" in out
    assert "stays whole: 4" in out


def test_inspect_json(command):
    body = json.loads(good(command("inspect", MODEL, "--json")))
    assert [(site["name"], site["units"]) for site in body["sites"]] == [("0", 16), ("2", 12)]
    assert body["sites"][0]["governs_parameters"] == 16 * (6 + 1 + 12)
    assert body["refused"][0]["name"] == "4"


def test_inspect_writes_nothing(command, tmp_path):
    good(command("inspect", MODEL, "--input", "1x6"))
    assert list(tmp_path.iterdir()) == []


def test_prune_is_the_python_verb(command, tmp_path):
    out = good(command("prune", MODEL, "small", "--units", "0=5", "--units", "2=4", "--seed", 3, *SAMPLED))
    same = cp.prune(two_sites(), units={"0": 5, "2": 4}, seed=3, method="sampling")
    assert equal_states(cp.load(tmp_path / "small", two_sites), same.model)
    assert out == f"{same.summary()}\nwritten to small\n"


def test_plan_then_apply_is_prune(command, tmp_path):
    request = ["--remove", "0.5", "--input", "1x6", *SAMPLED]
    assert "written to plan" in good(command("plan", MODEL, "-o", "plan", *request))
    good(command("apply", MODEL, "plan", "-o", "applied"))
    good(command("prune", MODEL, "pruned", *request))
    applied, pruned = (cp.load(tmp_path / name, two_sites) for name in ("applied", "pruned"))
    assert equal_states(applied, pruned)


@pytest.mark.parametrize(
    ("words", "request_"),
    [
        (["--remove", "0=0.5", "--remove", "2=0.25"], {"remove": {"0": 0.5, "2": 0.25}}),
        (["--remove", "0.4", "--ignore", "2"], {"remove": 0.4, "ignore": ["2"]}),
        (["--remove", "40%", "--ignore", "2"], {"remove": 0.4, "ignore": ["2"]}),
        (["--remove", "0=50%"], {"remove": {"0": 0.5}}),
        (["--draws", "*=4"], {"draws": {"*": 4}}),
        (["--units", "*=4", "--radius", "3.5"], {"units": {"*": 4}, "radius": 3.5}),
    ],
    ids=lambda v: " ".join(v) if isinstance(v, list) else "",
)
def test_options_mean_what_python_means(command, tmp_path, words, request_):
    good(command("plan", MODEL, "-o", "plan", *words, *SAMPLED))
    expected = cp.plan(two_sites(), method="sampling", **request_)
    found = cp.Plan.load(tmp_path / "plan")
    assert found.kept == expected.kept
    assert found.recipe["radius"] == expected.recipe["radius"]


def test_safetensors_with_a_factory(command, tmp_path):
    save_file(lenet_like(7).state_dict(), tmp_path / "w.safetensors")
    good(command("prune", "w.safetensors", "small", "--factory", MODEL, "--units", "0=5", *SAMPLED))
    same = cp.prune(lenet_like(7), units={"0": 5}, method="sampling")
    assert equal_states(cp.load(tmp_path / "small", two_sites), same.model)


def test_force_replaces(command, tmp_path):
    good(command("prune", MODEL, "small", "--units", "0=5"))
    good(command("prune", MODEL, "small", "--units", "0=4", "--force"))
    assert cp.load(tmp_path / "small", two_sites)[0].out_features == 4


def test_factories_of_the_current_directory_count(command, tmp_path):
    (tmp_path / "a_local_factory.py").write_text("from helpers import two_sites as make\n")
    assert "16" in good(command("inspect", "a_local_factory:make"))


@pytest.fixture
def short_demo(monkeypatch):
    monkeypatch.setattr(demo_run, "WIDTHS", ((30, 100),))
    monkeypatch.setattr(demo_run, "METHODS", {name: cp.METHODS[name] for name in ("sampling", "magnitude")})


@pytest.mark.usefixtures("short_demo")
def test_demo_json(command, tmp_path):
    rows = json.loads(good(command("demo", "--json", "-o", "there")))
    assert [row["method"] for row in rows] == ["dense", "sampling", "magnitude"]
    keys = {"method", "widths", "params", "bytes", "test_error_percent", "seconds", "prior", "data_used"}
    assert all(keys <= set(row) for row in rows)
    assert rows[1]["params"] == 785 * 30 + 31 * 100 + 101 * 10
    model = cp.load(tmp_path / "there", architecture)
    assert sum(p.numel() for p in model.parameters()) == rows[1]["params"]


@pytest.mark.usefixtures("short_demo")
def test_demo_table_in_80_columns_and_again(command, tmp_path):
    out = good(command("demo"))
    assert "dense" in out
    assert "written to coreprune-demo" in out
    table = out.split("\n\n")[1]
    assert max(map(len, table.splitlines())) <= 80
    assert (tmp_path / "coreprune-demo" / "model.safetensors").exists()
    good(command("demo"))


@pytest.mark.usefixtures("short_demo")
def test_demo_replaces_nothing_but_a_demo(command, tmp_path):
    (tmp_path / "coreprune-demo").mkdir()
    (tmp_path / "coreprune-demo" / "thesis.txt").write_text("precious")
    code, out, err = command("demo")
    assert (code, out) == (2, "")
    assert "coreprune-demo" in err
    assert (tmp_path / "coreprune-demo" / "thesis.txt").read_text() == "precious"


def test_version_and_help(command):
    assert cp.__version__ in good(command("--version"))
    assert "prune" in good(command("--help"))
    for name in ("inspect", "plan", "apply", "prune", "demo"):
        assert "Usage" in good(command(name, "--help"))


def test_the_installed_command(tmp_path):
    """In a process of its own: an error is one line and exit code 2."""
    places = [str(Path(file).parents[1]) for file in (__file__, cp.__file__)]
    env = os.environ | {"PYTHONPATH": os.pathsep.join(places)}
    words = [sys.executable, "-c", "from coreprune.cli.main import main; main()"]
    failed = subprocess.run(
        [*words, "inspect", "helpers:text"], cwd=tmp_path, env=env, capture_output=True, text=True, check=False
    )
    assert (failed.returncode, failed.stdout) == (2, "")
    assert len(failed.stderr.splitlines()) == 1


def test_interruption_leaves_nothing(command, tmp_path, monkeypatch):
    def interrupt(*_, **__):
        raise KeyboardInterrupt

    monkeypatch.setattr("coreprune.planning.decide", interrupt)
    code, out, _ = command("prune", MODEL, "small", "--units", "0=5")
    assert (code, out) == (130, "")
    assert list(tmp_path.iterdir()) == []


def test_a_defect_is_shown_with_its_traceback(command, monkeypatch):
    def defect(*_, **__):
        raise ZeroDivisionError

    monkeypatch.setattr("coreprune.planning.decide", defect)
    with pytest.raises(ZeroDivisionError):
        command("prune", MODEL, "small", "--units", "0=5")


def test_other_factories_are_not_confused():
    assert wider()[0].out_features == 17
    assert torch.equal(two_sites()[0].weight, lenet_like(3)[0].weight)

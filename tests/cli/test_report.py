"""`coreprune report`: the page and its numbers, with and without the dense network."""

from __future__ import annotations

import json
import webbrowser
from pathlib import Path

import pytest
from helpers import two_sites
from safetensors.torch import save_file

import coreprune as cp
from cli.commands import MODEL, good


@pytest.fixture
def small(command):
    good(command("prune", MODEL, "small", "--units", "0=5"))
    return Path("small")


def test_the_page_and_its_numbers(command, small):
    out = good(command("report", small))
    assert out == "written to report.html and report.json\n"
    body = json.loads(Path("report.json").read_text())
    assert body["parameters"] == {
        "before": sum(p.numel() for p in two_sites().parameters()),
        "after": 6 * 5 + 5 + 5 * 12 + 12 + 12 * 4 + 4,
    }
    assert body["commands"] == [f"coreprune prune {MODEL} small --units 0=5"]
    assert f"coreprune prune {MODEL} small" in Path("report.html").read_text()


def test_json_writes_nothing(command, small, tmp_path):
    before = sorted(tmp_path.iterdir())
    body = json.loads(good(command("report", small, "--json")))
    assert [(row["name"], row["after"]) for row in body["sites"] if not row["whole"]] == [("0", 5)]
    assert body["file_bytes"] == {"before": None, "after": (small / "model.safetensors").stat().st_size}
    assert sorted(tmp_path.iterdir()) == before


def test_with_the_dense_network(command, small):
    out = good(command("report", small, "--model", MODEL, "--seconds", 0, "--verify", "--json"))
    body = json.loads(out)
    assert [(row["name"], row["after"]) for row in body["sites"]] == [("0", 5), ("2", 12)]
    assert body["refused"] == [["4", "its units are the network's output"]]
    assert body["cost"]["latency"]["runs"] == 5
    checked = cp.verify(two_sites(), "small")
    assert body["statements"] == checked.statements()
    assert body["checked"]["end_bound"] == checked.end_bound


def test_a_batch_of_another_size_is_measured(command, small):
    adds = [
        json.loads(good(command("report", small, "--model", MODEL, "--input", shape, "--seconds", 0, "--json")))
        for shape in ("1x6", "8x6")
    ]
    assert adds[1]["multiply_adds"] == adds[0]["multiply_adds"]  # of one input
    assert ["8×6" in one["cost"]["inputs"] for one in adds] == [False, True]


def test_the_bytes_of_the_dense_file(command, small):
    save_file(two_sites().state_dict(), "dense.safetensors")
    out = good(command("report", small, "--model", "dense.safetensors", "--factory", MODEL, "--seconds", 0, "--json"))
    assert json.loads(out)["file_bytes"]["before"] == Path("dense.safetensors").stat().st_size


def test_another_dense_network_is_refused(command, small):
    code, out, err = command("report", small, "--model", "helpers:wider")
    assert (code, out) == (2, "")
    assert "MODEL must be the network that was cut" in err


@pytest.mark.parametrize("words", [["--verify"], ["--input", "1x6"], ["--factory", MODEL]], ids=lambda words: words[0])
def test_what_speaks_of_the_dense_network_needs_it(command, small, words):
    code, _, err = command("report", small, *words)
    assert code == 2
    assert "--model" in err


def test_open_opens_it(command, small, monkeypatch, tmp_path):
    seen = []
    monkeypatch.setattr(webbrowser, "open", seen.append)
    good(command("report", small, "-o", "there/page.html", "--open"))
    assert seen == [(tmp_path / "there" / "page.html").as_uri()]


def test_what_is_no_result_is_told(command):
    Path("empty").mkdir()
    code, out, err = command("report", "empty")
    assert (code, out) == (2, "")
    assert "structure.json" in err
    assert not Path("report.html").exists()


def test_commands_are_kept_one_after_the_other(command):
    good(command("plan", MODEL, "-o", "plan", "--units", "0=5"))
    good(command("apply", MODEL, "plan", "-o", "small"))
    body = json.loads(good(command("report", "small", "--json")))
    assert body["commands"] == [
        f"coreprune plan {MODEL} -o plan --units 0=5",
        f"coreprune apply {MODEL} plan -o small",
    ]

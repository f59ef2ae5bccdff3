"""--protect, and budgets that are measured, on the command line."""

from __future__ import annotations

import json

from cli.commands import MODEL, good


def test_protect(command):
    words = ["prune", MODEL, "small", "--remove", "0.4", "--protect", "2=10%", "--protect", "0=4", "--json"]
    body = json.loads(good(command(*words)))
    kept = {row["name"]: row["after"] for row in body["sites"]}
    assert kept["2"] >= 11
    assert kept["0"] >= 4
    assert body["recipe"]["protect"] == {"2": 0.1, "0": 4.0}
    assert "protect={'2': 0.1, '0': 4.0}" in body["python"]


def test_a_budget_that_is_measured_and_cannot_be(command):
    code, _, err = command("plan", MODEL, "-o", "plan", "--budget", "cosine=0.9")
    assert code == 2
    assert "ask for --budget error=0.05" in err


def test_a_budget_of_time_with_a_table(command, tmp_path):
    table = {"seconds": 0.010, "tensors": {"0.weight": 0.004, "2.weight": 0.003}}
    (tmp_path / "table.json").write_text(json.dumps(table))
    words = ["plan", MODEL, "-o", "plan", "--budget", "latency=70%", "--table", "table.json", "--json"]
    body = json.loads(good(command(*words)))
    assert body["recipe"]["budget"] == {"latency": "70%", "table": table}
    code, _, err = command("plan", MODEL, "-o", "other", "--remove", "0.5", "--table", "table.json")
    assert code == 2
    assert "--table goes with --budget latency=" in err

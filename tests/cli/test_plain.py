"""What a user meets first: Ctrl-C at any moment, output that is JSON alone, refusals before the work, plain words."""

from __future__ import annotations

import json
import os
import pty
import signal
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from helpers import two_sites
from safetensors.torch import save_file

from cli.commands import MODEL, good
from cli.test_polish import environment, needs_pty, start

ENTRY = "import coreprune_command; coreprune_command.main()"
#: held up while torch is imported
HELD = f"""
import builtins, signal, time
signal.signal(signal.SIGINT, signal.default_int_handler)
plain = builtins.__import__
def held(name, *words):
    if name == "torch":
        print("READY", flush=True)
        time.sleep(60)
    return plain(name, *words)
builtins.__import__ = held
{ENTRY}
"""


def test_the_imports_can_be_stopped(tmp_path):
    process = start(HELD, "info", folder=tmp_path, env=environment(), stdout=subprocess.PIPE, stderr=subprocess.PIPE)
    assert process.stdout.readline() == "READY\n"
    process.send_signal(signal.SIGINT)
    out, err = process.communicate(timeout=60)
    assert (process.returncode, out, err) == (130, "", "stopped: nothing was begun\n")


def test_the_way_in_runs_commands(tmp_path):
    done = subprocess.run(
        [sys.executable, "-c", ENTRY, "--version"],
        cwd=tmp_path,
        env=environment(),
        capture_output=True,
        text=True,
        check=False,
    )
    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout.startswith("coreprune, version")
    done = subprocess.run([sys.executable, "-m", "coreprune", "inspect", "nothere"], cwd=tmp_path, env=environment(),
                          capture_output=True, text=True, check=False)  # fmt: skip
    assert (done.returncode, done.stdout) == (2, "")


#: the work is stopped while it is at it, and again while it tidies up
TWICE = """
import os, signal, sys, time
signal.signal(signal.SIGINT, signal.default_int_handler)
import coreprune.cli.inspect as module
from coreprune.cli.main import main
def inspect(*words, **more):
    try:
        os.kill(os.getpid(), signal.SIGINT)
        time.sleep(60)
    finally:
        os.kill(os.getpid(), signal.SIGINT)
        time.sleep(0.2)
        print("tidied", file=sys.stderr)
module.api.inspect = inspect
main()
"""


def test_a_second_interrupt_does_not_stop_the_tidying(tmp_path):
    process = start(TWICE, "inspect", MODEL, folder=tmp_path, env=environment(), stdout=subprocess.PIPE,
                    stderr=subprocess.PIPE)  # fmt: skip
    out, err = process.communicate(timeout=60)
    assert (process.returncode, out) == (130, "")
    assert [line for line in err.splitlines() if line] == ["tidied", "stopped: nothing half-written is left"]


def test_what_a_factory_prints_is_no_part_of_the_result(command, tmp_path):
    (tmp_path / "noisy.py").write_text(
        "from helpers import two_sites\ndef make():\n    print('loading weights')\n    return two_sites()\n"
    )
    sys.modules.pop("noisy", None)
    for words in (["inspect", "noisy:make"], ["prune", "noisy:make", "small", "--remove", 0.3]):
        code, out, err = command(*words, "--json")
        assert code == 0
        assert isinstance(json.loads(out), dict)
        assert "loading weights" in err


@pytest.mark.parametrize("words", [["plan", MODEL, "-o"], ["apply", MODEL, "plan", "-o"], ["prune", MODEL]],
                         ids=lambda w: w[0])  # fmt: skip
def test_a_place_that_is_taken_is_refused_before_the_work(command, tmp_path, monkeypatch, words):
    (tmp_path / "there").mkdir()
    (tmp_path / "file").write_text("")
    monkeypatch.setattr("coreprune.cli.common.huggingface.load", None)
    for name in ("plan", "apply", "prune"):
        monkeypatch.setattr(f"coreprune.api.{name}", None)
    for place, told in (("there", "there exists already: give another name, or --force to replace it"),
                        ("file/in", "file/in cannot be made, as file is a file: give another name")):  # fmt: skip
        code, out, err = command(*words, place)
        assert (code, out) == (2, "")
        assert err == f"coreprune: {told}\n"


def test_a_budget_of_error_is_a_number_as_it_is_typed(command):
    """Such as 0.15, which is text, where all cuts together are predicted to be off by more than the sites' errors say."""
    for said in ("0.15", "15%"):
        body = json.loads(good(command("plan", MODEL, "-o", f"plan-{said}", "--budget", f"error={said}", "--json")))
        assert 0 < body["sites"][-1]["evidence"]["relative_error"] <= 0.15
    code, _, err = command("plan", MODEL, "-o", "other", "--budget", "error=much")
    assert code == 2
    assert "--budget error=much is not a number or a percentage" in err


def test_a_plan_is_no_network_to_compare(command):
    good(command("prune", MODEL, "small", "--units", "0=5"))
    good(command("plan", MODEL, "-o", "plan", "--units", "0=5"))
    code, out, err = command("compare", "small", "plan")
    assert (code, out) == (2, "")
    assert "plan is a plan, and no network is cut yet: apply it first" in err


def test_a_result_that_is_not_whole_is_not_reported(command):
    good(command("prune", MODEL, "small", "--units", "0=5"))
    file = Path("small") / "model.safetensors"
    file.write_bytes(file.read_bytes()[:-40])
    for words in (["report", "small"], ["compare", "small", "small"]):
        code, out, err = command(*words)
        assert (code, out) == (2, "")
        assert "model.safetensors is not a whole safetensors file" in err
    assert not Path("report.html").exists()


@pytest.mark.parametrize(
    "words,told",
    [
        (["prune", MODEL, "s", "--remove", "0.999"], "--remove 0.999 was asked"),
        (["prune", MODEL, "s", "--budget", "flops=1%"], "'"),
        (["prune", MODEL, "s", "--remove", "0.3", "--ignore", "*"], "no site is left by --ignore and --kinds"),
        (["prune", MODEL, "s", "--remove", "0.3", "--round-to", 100], "no site has more units than 100 units"),
        (["prune", MODEL, "s", "--remove", "0.3", "--std", -1], "--std -1 was asked of the prior"),
        (["prune", MODEL, "s", "--units", "0=1.5"], "--units '0=1.5' has no whole number"),
        (["prune", MODEL, "s", "--budget", "params=abc"], "--budget params=abc is not a number"),
        (["inspect", MODEL, "--capture", "foo"], "'auto', 'export', 'blocks'"),
        (["prune", MODEL, "s", "--remove", "0.3", "--text", "none.txt"], "--text none.txt was asked of a stack"),
    ],
    ids=lambda value: " ".join(map(str, value[3:])) if isinstance(value, list) else "",
)
def test_refusals_speak_of_options(command, words, told):
    code, out, err = command(*words)
    assert (code, out) == (2, "")
    assert told in err
    assert not [word for word in ("remove=", "uniform=", "force=", "prior=", "ignore=", "kinds=") if word in err]


def test_only_a_budget_of_parameters_is_told_as_a_fraction_to_remove(command):
    assert "--remove 0." in command("prune", MODEL, "s", "--remove", "0.999")[2]
    assert "--remove" not in command("prune", MODEL, "s", "--budget", "flops=1%")[2]


def test_what_a_file_and_its_factory_do_not_share_is_named(command):
    tensors = two_sites().state_dict()
    save_file(tensors | {"0.weight": torch.zeros(3, 4)}, "a.safetensors")
    save_file({name: t for name, t in tensors.items() if name != "2.bias"}, "b.safetensors")
    for file, told in (
        ("a", "0.weight is 3x4 in the file and 16x6 in the network"),
        ("b", "2.bias is only in the network"),
    ):
        code, _, err = command("inspect", f"{file}.safetensors", "--factory", MODEL)
        assert code == 2
        assert told in err


@needs_pty
def test_refusals_fit_the_terminal_and_are_one_line_elsewhere(tmp_path):
    words = [sys.executable, "-m", "coreprune", "prune", MODEL, "s", "--units", f"{'no such ' * 12}=5"]
    master, slave = pty.openpty()
    process = subprocess.Popen(words, cwd=tmp_path, env=environment(COLUMNS="60"), stderr=slave, stdout=subprocess.PIPE)
    os.close(slave)
    process.communicate(timeout=60)
    told = os.read(master, 2**16).decode()
    os.close(master)
    lines = told[told.index("coreprune: ") :].splitlines()
    assert len(lines) > 1
    assert max(map(len, lines)) <= 80
    done = subprocess.run(words, cwd=tmp_path, env=environment(), capture_output=True, text=True, check=False)
    assert len(done.stderr.splitlines()) == 1

"""Bad input on the command line: one sentence on stderr, exit code 2, nothing written or changed."""

from __future__ import annotations

import errno
import pickle
import sys
from pathlib import Path

import pytest
import torch
from helpers import lenet_like, snapshot, wider
from safetensors.torch import save_file

import coreprune as cp
from coreprune.cli.main import main
from coreprune.io import checkpoint

GOOD = "helpers:two_sites"
HALF = ["--remove", "0.5"]


class Mark:
    """A pickle that leaves a file behind when it is opened."""

    def __reduce__(self):
        return Path.touch, (Path("opened"),)


@pytest.fixture
def refused(tmp_path, monkeypatch, capfd):
    """Runs a command that must be refused, and gives its one line."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", [*sys.path])

    def call(*words):
        before = snapshot(tmp_path)
        capfd.readouterr()
        monkeypatch.setattr(sys, "argv", ["coreprune", *map(str, words)])
        with pytest.raises(SystemExit) as leave:
            main()
        out, err = capfd.readouterr()
        assert leave.value.code == 2
        assert out == ""
        assert err.startswith("coreprune: ")
        assert err.count("\n") == 1
        assert len(err) < 1000
        assert snapshot(tmp_path) == before
        return err

    return call


#: what is asked of `prune`, and a word that the answer must have
REQUESTS = {
    "not a module": (["helpers:text", "out", *HALF], "str"),
    "a number in place of a factory": (["helpers:a_number", "out", *HALF], "int"),
    "one Linear layer": (["helpers:one_linear", "out", *HALF], "output"),
    "no Linear layer": (["helpers:no_linear", "out", *HALF], "Linear"),
    "unknown activation": (["helpers:unknown_activation", "out", *HALF], "CELU"),
    "NaN": (["helpers:with_nan", "out", *HALF], "2.bias"),
    "infinity": (["helpers:with_infinity", "out", *HALF], "4.weight"),
    "remove 1": ([GOOD, "out", "--remove", "1"], "remove"),
    "remove 1.5": ([GOOD, "out", "--remove", "1.5"], "1.5"),
    "remove negative": ([GOOD, "out", "--remove", "-0.1"], "-0.1"),
    "remove nan": ([GOOD, "out", "--remove", "nan"], "nan"),
    "remove a word": ([GOOD, "out", "--remove", "half"], "half"),
    "remove too much": ([GOOD, "out", "--remove", "0.99"], "at most"),
    "remove twice": ([GOOD, "out", *HALF, *HALF], "--remove"),
    "remove more than a site": ([GOOD, "out", "--remove", "0=1.5"], "1.5"),
    "remove and units": ([GOOD, "out", *HALF, "--units", "0=3"], "one of"),
    "nothing asked": ([GOOD, "out"], "remove"),
    "more units than exist": ([GOOD, "out", "--units", "0=17"], "16"),
    "zero units": ([GOOD, "out", "--units", "0=0"], "0"),
    "negative units": ([GOOD, "out", "--units", "0=-3"], "-3"),
    "units a word": ([GOOD, "out", "--units", "0=few"], "few"),
    "units without a site": ([GOOD, "out", "--units", "3"], "="),
    "zero draws": ([GOOD, "out", "--draws", "0=0", "--method", "sampling"], "0"),
    "unknown method": ([GOOD, "out", *HALF, "--method", "magic"], "magic"),
    "unknown site": ([GOOD, "out", "--units", "fc=3"], "fc"),
    "unknown site to ignore": ([GOOD, "out", *HALF, "--ignore", "fc"], "fc"),
    "unknown site by expression": ([GOOD, "out", *HALF, "--ignore", "re:fc"], "fc"),
    "no regular expression": ([GOOD, "out", *HALF, "--ignore", "re:("], "re:("),
    "radius negative": ([GOOD, "out", *HALF, "--radius", "-1"], "radius"),
    "radius nan": ([GOOD, "out", *HALF, "--radius", "nan"], "radius"),
    "wrong input shape": ([GOOD, "out", *HALF, "--input", "1x7"], "6"),
    "wrong input rank": ([GOOD, "out", *HALF, "--input", "7"], "6"),
    "input no shape": ([GOOD, "out", *HALF, "--input", "large"], "large"),
    "input negative": ([GOOD, "out", *HALF, "--input", "1x-6"], "1x-6"),
    "no such module": (["nowhere:make", "out", *HALF], "nowhere"),
    "no such name": (["helpers:nothing", "out", *HALF], "nothing"),
    "no name": (["helpers", "out", *HALF], "helpers"),
    "relative module": ([".helpers:two_sites", "out", *HALF], ".helpers"),
    "factory with arguments": (["torch.nn:Linear", "out", *HALF], "Linear"),
    "factory that fails": (["helpers:raises", "out", *HALF], "raises"),
    "no such file": (["nowhere.safetensors", "out", "--factory", GOOD, *HALF], "nowhere.safetensors"),
}


@pytest.mark.parametrize("name", REQUESTS)
def test_prune_refuses(refused, name):
    words, word = REQUESTS[name]
    assert word in refused("prune", *words)


@pytest.mark.parametrize("name", ["NaN", "unknown method", "zero units", "wrong input shape"])
def test_plan_refuses(refused, name):
    (model, out, *options), word = REQUESTS[name]
    assert word in refused("plan", model, "-o", out, *options)


@pytest.mark.parametrize("model", ["helpers:text", "helpers:no_linear", "nowhere:make", "helpers"])
def test_inspect_refuses(refused, model):
    assert refused("inspect", model)


@pytest.mark.parametrize("words", [["prune", GOOD, "there", *HALF], ["plan", GOOD, "-o", "there", *HALF]], ids=str)
@pytest.mark.parametrize("kind", ["directory", "empty directory", "file"])
def test_output_exists(refused, tmp_path, words, kind):
    if kind == "file":
        (tmp_path / "there").write_text("precious")
    else:
        (tmp_path / "there").mkdir()
        if kind == "directory":
            (tmp_path / "there" / "note").write_text("precious")
    assert "--force" in refused(*words)


def test_force_does_not_replace_a_file(refused, tmp_path):
    (tmp_path / "there").write_text("precious")
    assert "there" in refused("prune", GOOD, "there", *HALF, "--force")


def test_force_does_not_replace_what_coreprune_did_not_write(refused, tmp_path):
    """A slip of the hand such as `coreprune prune MODEL ~ --force` must not cost a home directory."""
    (tmp_path / "home").mkdir()
    (tmp_path / "home" / "thesis.txt").write_text("precious")
    assert "home" in refused("prune", GOOD, "home", *HALF, "--force")


def test_apply_refuses_an_existing_output(refused, tmp_path):
    cp.plan(lenet_like(3), units={"0": 5}, method="uniform").save(tmp_path / "plan")
    (tmp_path / "out").mkdir()
    assert "--force" in refused("apply", GOOD, "plan", "-o", "out")


def test_apply_refuses_a_plan_for_another_network(refused, tmp_path):
    cp.plan(wider(), units={"0": 5}, method="uniform").save(tmp_path / "plan")
    assert "0.weight" in refused("apply", GOOD, "plan", "-o", "out")


def test_apply_refuses_what_is_no_plan(refused, tmp_path):
    (tmp_path / "plan").mkdir()
    (tmp_path / "plan" / "plan.json").write_text("{}")
    assert "plan.json" in refused("apply", GOOD, "plan", "-o", "out")
    assert "nowhere" in refused("apply", GOOD, "nowhere", "-o", "out")


def test_checkpoint_that_does_not_fit(refused, tmp_path):
    save_file(wider().state_dict(), tmp_path / "w.safetensors")
    assert "0.weight" in refused("prune", "w.safetensors", "out", "--factory", GOOD, *HALF)


def test_checkpoint_with_other_names(refused, tmp_path):
    save_file({"a": torch.ones(1)}, tmp_path / "w.safetensors")
    assert "w.safetensors" in refused("prune", "w.safetensors", "out", "--factory", GOOD, *HALF)


def test_checkpoint_without_a_factory(refused, tmp_path):
    save_file(lenet_like().state_dict(), tmp_path / "w.safetensors")
    assert "--factory" in refused("prune", "w.safetensors", "out", *HALF)


def test_checkpoint_with_a_factory_of_something_else(refused, tmp_path):
    save_file(lenet_like().state_dict(), tmp_path / "w.safetensors")
    assert "helpers:text" in refused("prune", "w.safetensors", "out", "--factory", "helpers:text", *HALF)


def test_damaged_checkpoint(refused, tmp_path):
    save_file(lenet_like().state_dict(), tmp_path / "w.safetensors")
    (tmp_path / "w.safetensors").write_bytes((tmp_path / "w.safetensors").read_bytes()[:-10])
    assert "w.safetensors" in refused("prune", "w.safetensors", "out", "--factory", GOOD, *HALF)


@pytest.mark.parametrize("name", ["w.pt", "w.pth", "w.bin", "w.pkl", "w.safetensors", "w"])
@pytest.mark.parametrize("protocol", [0, 2, 5])
def test_a_pickle_is_refused_without_opening_it(refused, tmp_path, name, protocol):
    (tmp_path / name).write_bytes(pickle.dumps(Mark(), protocol=protocol))
    assert name in refused("prune", name, "out", "--factory", GOOD, *HALF)


@pytest.mark.parametrize("name", ["w.pt", "w.safetensors"])
def test_a_torch_checkpoint_is_refused_as_a_pickle(refused, tmp_path, name):
    torch.save(lenet_like().state_dict(), tmp_path / name)
    assert "pickle" in refused("prune", name, "out", "--factory", GOOD, *HALF)


def full(*_, **__):
    raise OSError(errno.ENOSPC, "No space left on device")


@pytest.mark.parametrize("words", [["prune", GOOD, "out", *HALF], ["plan", GOOD, "-o", "out", *HALF]], ids=str)
def test_disk_full_while_tensors_are_written(refused, monkeypatch, words):
    monkeypatch.setattr(checkpoint, "save_file", full)
    assert "No space left" in refused(*words)


@pytest.mark.parametrize("words", [["prune", GOOD, "out", *HALF], ["plan", GOOD, "-o", "out", *HALF]], ids=str)
def test_disk_full_while_json_is_written(refused, monkeypatch, words):
    monkeypatch.setattr(Path, "write_text", full)
    assert "No space left" in refused(*words)


def test_disk_full_keeps_the_output_of_before(refused, tmp_path, monkeypatch):
    cp.prune(lenet_like(3), units={"0": 5}, method="uniform").save(tmp_path / "out")
    monkeypatch.setattr(checkpoint, "save_file", full)
    assert "No space left" in refused("prune", GOOD, "out", *HALF, "--force")


def test_a_place_that_cannot_be_written(refused, tmp_path):
    (tmp_path / "file").write_text("precious")
    assert "out" in refused("prune", GOOD, "file/out", *HALF)


@pytest.mark.parametrize(
    "words",
    [["prune"], ["prune", GOOD, "out", "--seed", "x"], ["nonsense"], ["plan", GOOD], ["prune", GOOD, "out", "--wrong"]],
    ids=str,
)
def test_a_command_that_is_wrongly_written_exits_2_and_writes_nothing(tmp_path, monkeypatch, capfd, words):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "argv", ["coreprune", *words])
    with pytest.raises(SystemExit) as leave:
        main()
    out, err = capfd.readouterr()
    assert (leave.value.code, out) == (2, "")
    assert "Traceback" not in err
    assert err != ""
    assert list(tmp_path.iterdir()) == []

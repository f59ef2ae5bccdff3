"""``coreprune finetune``: what the verb does, for both kinds of results, and stopped and gone on with."""

from __future__ import annotations

import json

import pytest
import torch
from helpers import equal_states, two_sites

import coreprune as cp
from cli.commands import MODEL, good
from coreprune.cli.finetune import finetune
from coreprune.cli.log import add_log_options
from coreprune.cli.main import cli
from coreprune.engine import distill as engine
from coreprune.reading import read_claims, read_structure
from coreprune.recovery import distill

QUICK = ["--steps", 40, "--rate", "2e-3"]


@pytest.fixture(autouse=True)
def registered(monkeypatch):
    if "finetune" not in cli.commands:
        monkeypatch.setattr(finetune, "params", [*finetune.params])
        add_log_options(finetune)
        monkeypatch.setitem(cli.commands, "finetune", finetune)


@pytest.fixture
def small(command):
    good(command("prune", MODEL, "small", "--units", "0=5", "--units", "2=4", "--std", "0.5"))


def language_model(folder):
    import transformers

    sizes = {"hidden_size": 16, "intermediate_size": 24, "num_hidden_layers": 1, "num_attention_heads": 2}
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        config = transformers.LlamaConfig(vocab_size=40, bos_token_id=1, eos_token_id=2, pad_token_id=0, **sizes)
        model = transformers.LlamaForCausalLM(config)
    with torch.no_grad():
        for p in model.parameters():
            p.mul_(10 if p.dim() > 1 else 1)
    model.save_pretrained(folder)


@pytest.mark.usefixtures("small")
def test_it_is_the_python_verb(command, tmp_path):
    out = good(command("finetune", MODEL, "small", "better", *QUICK))
    dense = two_sites()
    same = distill(cp.load("small", two_sites), dense, prior=cp.Gaussian(std=0.5), steps=40, rate=2e-3)
    assert equal_states(cp.load("better", two_sites), same)
    facts = read_structure("better")["recipe"]["distilled"]
    assert facts["prior"] == "gaussian inputs, mean 0, std 0.5"
    assert f"{facts['before']:.4g} -> {facts['after']:.4g}" in out
    assert "data used to train: no" in out
    assert facts["after"] < facts["before"]
    assert sorted(file.name for file in tmp_path.iterdir()) == ["better", "small"]


@pytest.mark.usefixtures("small")
def test_what_was_known_of_the_cut_stays(command):
    good(command("finetune", MODEL, "small", "better", *QUICK))
    before, after = read_structure("small"), read_structure("better")
    recipe = after.pop("recipe")
    commands = recipe.pop("commands")
    assert recipe.pop("distilled")["steps"] == 40
    assert [line.split()[1] for line in commands] == ["prune", "finetune"]
    assert recipe == {key: value for key, value in before.pop("recipe").items() if key != "commands"}
    assert after == before
    good(command("verify", MODEL, "better", "--no-worst"))
    good(command("report", "better", "--json"))


def test_combined_units_keep_their_combinations(command):
    good(command("prune", MODEL, "small", "--units", "0=5", "--method", "refined"))
    good(command("finetune", MODEL, "small", "better", *QUICK))
    before, after = read_claims("small"), read_claims("better")
    assert before["0"].incoming is not None
    assert torch.equal(before["0"].incoming, after["0"].incoming)


@pytest.mark.usefixtures("small")
def test_json(command):
    body = json.loads(good(command("finetune", MODEL, "small", "better", *QUICK, "--json")))
    assert body["distilled"] == read_structure("better")["recipe"]["distilled"]


def test_a_hugging_face_directory(command, tmp_path):
    import transformers

    language_model(tmp_path / "dense")
    good(command("prune", "dense", "small", "--units", "*mlp*=8", "--prior", "noise"))
    before = read_structure("small")["recipe"]["perplexity"][0]
    out = good(command("finetune", "dense", "small", "better", "--prior", "noise", *QUICK))
    recipe = read_structure("better")["recipe"]
    assert recipe["distilled"]["loss"] == "kl"
    assert recipe["distilled"]["after"] < recipe["distilled"]["before"]
    (after,) = recipe["perplexity"]
    assert after["dense"] == before["dense"]
    assert after["small"] != before["small"]
    assert f"-> {after['small']:.2f}" in " ".join(out.split())
    one, two = (transformers.LlamaForCausalLM.from_pretrained(tmp_path / name) for name in ("small", "better"))
    assert {n: p.shape for n, p in one.named_parameters()} == {n: p.shape for n, p in two.named_parameters()}
    assert not equal_states(one, two)
    assert (tmp_path / "better" / "README.md").exists()


@pytest.mark.usefixtures("small")
def test_a_stopped_run_goes_on_to_the_same_bits(command, tmp_path, monkeypatch):
    good(command("finetune", MODEL, "small", "whole", *QUICK))
    monkeypatch.setattr(engine, "INTERVAL", 0.0)
    real, calls = engine.State.write, []

    def stopped(*words):
        real(*words)
        calls.append(words)
        if len(calls) == 8:
            raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(engine.State, "write", stopped)
        code, out, err = command("finetune", MODEL, "small", "better", *QUICK)
    assert (code, out) == (130, "")
    assert "better.state: go on with --resume" in err
    assert not (tmp_path / "better").exists()
    assert {file.name for file in (tmp_path / "better.state").iterdir()} == {"state.json", "step-8.safetensors"}

    code, out, err = command("finetune", MODEL, "small", "better", *QUICK)
    assert (code, len(err.splitlines())) == (2, 1)
    assert "--resume" in err
    good(command("finetune", MODEL, "small", "better", *QUICK, "--resume"))
    assert equal_states(cp.load("better", two_sites), cp.load("whole", two_sites))
    assert not (tmp_path / "better.state").exists()


@pytest.mark.usefixtures("small")
def test_force_begins_again_and_replaces(command, tmp_path, monkeypatch):
    good(command("finetune", MODEL, "small", "better", *QUICK))
    code, _, err = command("finetune", MODEL, "small", "better", *QUICK)
    assert code == 2
    assert "better exists already" in err
    (tmp_path / "better.state").mkdir()
    (tmp_path / "better.state" / "state.json").write_text("damaged")
    good(command("finetune", MODEL, "small", "better", *QUICK, "--seed", 9, "--force"))
    assert read_structure("better")["recipe"]["distilled"]["seed"] == 9


@pytest.mark.usefixtures("small")
@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["nowhere", "better"], "nowhere/structure.json"),
        (["small", "better", "--steps", 0], "--steps 0 was asked"),
        (["small", "better", "--rate", 0], "--rate 0.0 was asked"),
        (["small", "better", "--prior", "words"], "--prior words was asked"),
        (["small", "better", "--loss", "mae"], "--loss mae was asked"),
        (["small", "better", "--prior", "noise", "--text", "t.txt"], "--prior and --text"),
        (["small", "better", "--text", "t.txt"], "reads no tokens"),
    ],
    ids=lambda v: v if isinstance(v, str) else "",
)
def test_bad_input_is_one_sentence(command, tmp_path, words, said):
    code, out, err = command("finetune", MODEL, *words)
    assert (code, out, len(err.splitlines())) == (2, "", 1)
    assert said in err
    assert [file.name for file in tmp_path.iterdir()] == ["small"]


def test_the_help_fits_and_its_examples_are_understood(command):
    text = good(command("finetune", "--help"))
    assert max(map(len, text.splitlines())) <= 80
    finetune.make_context("finetune", ["coreprune.demo:lenet", "small/", "better/", "--rate", "1e-3"])

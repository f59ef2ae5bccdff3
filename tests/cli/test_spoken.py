"""Messages name options where the library names arguments, and lead somewhere."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from cli.commands import MODEL
from coreprune.cli.spoken import spoken

CONV = "cli.test_spoken:convolutions"


def convolutions():
    torch.manual_seed(0)
    return nn.Sequential(nn.Conv2d(3, 8, 3), nn.ReLU(), nn.Conv2d(8, 8, 3), nn.ReLU(), nn.Flatten(), nn.Linear(128, 4))


@pytest.mark.parametrize(
    ("said", "heard"),
    [
        ("steps=0 was asked: give a whole number", "--steps 0 was asked: give a whole number"),
        ("prior='a b' was asked", "--prior a b was asked"),
        ("cut it block by block with capture='blocks', or", "cut it block by block with --capture blocks, or"),
        ("the network's own tokenizer=x stays", "the network's own tokenizer=x stays"),
        ("site.units=3 stays", "site.units=3 stays"),
        ("give inputs= as the network takes them", "call coreprune from Python with inputs= as the network takes them"),
        ("asked of a stack: give a coreprune.Gaussian or data=", "asked of a stack: give --mean and --std"),
        ("params='60%,flops=2' is no number", "--budget params=60%,flops=2 is no number"),
        ("params='' is no number", "--budget params= is no number"),
        ("asked (flops=7): ask for error=0.1, or", "asked (--budget flops=7): ask for --budget error=0.1, or"),
    ],
)
def test_arguments_are_options(said, heard):
    assert spoken(said) == heard


@pytest.mark.parametrize(
    ("words", "said"),
    [
        ([MODEL, "--remove", "50"], "--remove 50.0 was asked: give the fraction to remove, at least 0 and below 1; "
                                    "50 per cent are 0.5"),
        ([MODEL, "--remove", "0.5", "--prior", "gaussian"], "noise is the Gaussian one"),
        ([MODEL, "--remove", "0.5", "--prior", "text"], "give --mean and --std"),
        ([MODEL, "--budget", "size=3"], "divergence, cosine, output_error"),
        ([MODEL], "say one of --remove (a fraction), --units (exact widths) and --budget, not several or none"),
        ([CONV, "--remove", "0.5"], "only Linear layers are followed without --input"),
        ([CONV, "--remove", "0.5", "--input", "1x3x8x8", "--prior", "generated"], "give --prior noise"),
        ([CONV, "--remove", "0.5", "--input", "1x3x8x8", "--text", "t.txt"], "reads no tokens"),
    ],
)  # fmt: skip
def test_what_is_asked_wrongly(command, words, said):
    code, out, err = command("prune", words[0], "small", *words[1:])
    assert (code, out, len(err.splitlines())) == (2, "", 1)
    assert said in err


def test_a_dense_directory_is_told_from_a_result(command, tmp_path):
    (tmp_path / "dense").mkdir()
    code, _, err = command("report", "dense")
    assert code == 2
    assert "dense holds no structure.json, so that coreprune did not write it" in err


def test_sites_left_whole_are_named(command):
    code, out, _ = command("prune", MODEL, "small", "--units", "0=5")
    assert code == 0
    assert "left whole: 2\n" in out


@pytest.fixture
def llama(tmp_path):
    transformers = pytest.importorskip("transformers")
    config = transformers.LlamaConfig(
        vocab_size=64, hidden_size=16, intermediate_size=24, num_hidden_layers=1, num_attention_heads=2,
        num_key_value_heads=1, max_position_embeddings=32,
    )  # fmt: skip
    transformers.LlamaForCausalLM(config).save_pretrained(tmp_path / "dense")


@pytest.mark.usefixtures("llama")
def test_a_text_that_nothing_can_read_is_refused_before_the_cut(command, tmp_path):
    (tmp_path / "t.txt").write_text("one two three")
    code, _, err = command("prune", "dense", "small", "--remove", "0.2", "--prior", "zipf", "--eval-text", "t.txt")
    assert code == 2
    assert "no tokenizer lies in dense" in err
    assert not (tmp_path / "small").exists()


@pytest.mark.usefixtures("llama")
def test_a_shape_of_tokens_is_tokens(command):
    code, out, err = command("inspect", "dense", "--input", "3x8", "--json")
    assert (code, err) == (0, "")
    assert "mlp.gate_proj" in out

"""`coreprune compare`: two results, or a dense network and a result."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from helpers import two_sites
from report.results import made, site, structure
from safetensors.torch import save_file

import coreprune as cp
from cli.commands import MODEL, good
from coreprune.report.compare import compare, comparison_text
from coreprune.report.numbers import numbers


@pytest.fixture
def both(command):
    good(command("prune", MODEL, "one", "--units", "0=5", "--std", "0.5"))
    good(command("prune", MODEL, "two", "--units", "2=4", "--method", "sampling"))


@pytest.mark.usefixtures("both")
def test_two_results(command):
    body = json.loads(good(command("compare", "one", "two", "--json")))
    models = [cp.load(name, two_sites) for name in ("one", "two")]
    assert body["parameters"] == [sum(p.numel() for p in model.parameters()) for model in models]
    assert body["file_bytes"] == [Path(name, "model.safetensors").stat().st_size for name in ("one", "two")]
    assert [(pair["name"], pair["before"], pair["kept"]) for pair in body["sites"]] == [
        ("0", 16, [5, 16]),
        ("2", 12, [12, 4]),
    ]
    assert [[error is None for error in pair["error"]] for pair in body["sites"]] == [[False, True], [True, False]]
    out = good(command("compare", "one", "two"))
    assert "A: one (kernel)" in out
    assert "B: two (sampling)" in out
    assert "prior of A: gaussian inputs, mean 0, std 0.5" in out


@pytest.mark.usefixtures("both")
@pytest.mark.parametrize("order", [("dense.safetensors", "one"), ("one", "dense.safetensors")])
def test_a_dense_file_and_a_result(command, order):
    save_file(two_sites().state_dict(), "dense.safetensors")
    body = json.loads(good(command("compare", *order, "--json")))
    at = order.index("dense.safetensors")
    assert body["parameters"][at] == sum(p.numel() for p in two_sites().parameters())
    assert body["tensor_bytes"][at] == 4 * body["parameters"][at]
    assert body["multiply_adds"][at] == 6 * 16 + 16 * 12 + 12 * 4
    assert body["sites"][0]["kept"][at] == 16
    assert body["note"] == ""


@pytest.mark.usefixtures("both")
def test_what_a_checkpoint_holds_beside_the_network_is_not_counted(command):
    save_file({**two_sites().state_dict(), "position_ids": torch.arange(512)}, "dense.safetensors")
    body = json.loads(good(command("compare", "dense.safetensors", "one", "--json")))
    assert body["parameters"][0] == sum(p.numel() for p in two_sites().parameters())
    assert body["note"] == "" and body["sites"][0]["kept"] == [16, 5]


def test_networks_of_other_sizes_are_told(command):
    good(command("prune", MODEL, "one", "--units", "0=5"))
    good(command("prune", "helpers:wider", "two", "--units", "0=5"))
    assert "need not be the same" in " ".join(good(command("compare", "one", "two")).split())


@pytest.mark.parametrize("what", ["nothing", "damaged.safetensors", "dense.safetensors"])
def test_what_cannot_be_compared_is_told(command, what):
    save_file(two_sites().state_dict(), "dense.safetensors")
    Path("damaged.safetensors").write_bytes(b"no such thing")
    code, out, err = command("compare", what, "dense.safetensors")
    assert (code, out) == (2, "")
    assert len(err.splitlines()) == 1


def test_80_columns_whatever_the_names_and_alike_sites_in_one_line():
    long = made(40, "a.very.long.name.of.a.module.that.goes.on.and.on.block{}.intermediate.dense.conv")
    text = comparison_text(compare(long, long))
    assert max(map(len, text.splitlines())) <= 80
    assert text.count("dense.conv (40)") == 1
    assert "prior of both" in text


def test_sites_stay_in_forward_order():
    def cut(*names):
        return numbers(structure([(site(name, 8), 4, {}) for name in names]), "x")

    found = compare(cut("a", "c", "d"), cut("b", "c", "e"))
    assert [pair.name for pair in found.sites] == ["a", "b", "c", "e", "d"]


def test_both_are_run_where_that_is_asked(command, tmp_path):
    transformers = pytest.importorskip("transformers")
    torch.manual_seed(0)
    config = transformers.LlamaConfig(
        vocab_size=64, hidden_size=16, intermediate_size=24, num_hidden_layers=2, num_attention_heads=4,
        num_key_value_heads=2, max_position_embeddings=32,
    )  # fmt: skip
    transformers.LlamaForCausalLM(config).save_pretrained(tmp_path / "dense")
    good(command("prune", "dense", "small", "--remove", "0.1", "--prior", "noise"))
    out = good(command("compare", "dense", "small", "--speed", "--seconds", "0"))
    assert "writing, tokens/s" in out
    assert "a forward pass" in out
    assert all(len(line) <= 80 for line in out.splitlines())
    body = json.loads(good(command("compare", "dense", "small", "--speed", "--seconds", "0", "--json")))
    assert min(body["cost"]["generation"]["written_per_second"]) > 0
    assert "cost" in json.loads(good(command("compare", "dense", "small", "--json")))


def test_what_transformers_does_not_open_is_not_run(command):
    good(command("prune", MODEL, "small", "--units", "0=5"))
    code, _, err = command("compare", "small", "small", "--speed")
    assert code == 2
    assert "coreprune report OUT --model MODEL" in err

"""Zipf's law as a prior: how often each token comes, which never come, and what is refused."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from test_text import BEGIN, END, tokenizer
from torch import nn

import coreprune as cp
from coreprune.errors import InvalidInputError
from coreprune.priors.zipf import Zipf

PLAIN = nn.Linear(2, 2)


def configured(**fields: object) -> nn.Module:
    model = nn.Linear(2, 2)
    model.config = SimpleNamespace(**fields)
    return model


class Reader(nn.Module):
    """Reads tokens, without transformers; it has places for eight."""

    def __init__(self) -> None:
        super().__init__()
        self.table, self.places = nn.Embedding(30, 8), nn.Embedding(8, 8)
        self.up, self.down = nn.Linear(8, 16), nn.Linear(16, 8)

    def forward(self, ids: torch.Tensor) -> torch.Tensor:
        h = self.table(ids) + self.places(torch.arange(ids.shape[1]))
        return h + self.down(torch.relu(self.up(h)))


def reader() -> Reader:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        return Reader().eval()


# ---------------------------------------------------------------- the law


@pytest.mark.parametrize("exponent,offset", [(1.0, 2.7), (1.0, 0.0), (0.5, 1.0), (2.0, 0.0), (0.0, 0.0)])
def test_tokens_come_as_often_as_the_formula_says(exponent, offset):
    rows, special = 40, {3, 7}
    model = configured(bos_token_id=3, eos_token_id=[7])
    ids = Zipf(200_000, 50, exponent, offset).draw(model, rows, seed=0)
    p = torch.tensor([0.0 if i in special else (i + 1 + offset) ** -exponent for i in range(rows)]).double()
    expected = ids.numel() * p / p.sum()
    counts = ids.flatten().bincount(minlength=rows).double()
    assert counts.shape == (rows,) and counts[expected == 0].sum() == 0
    seen = expected > 0
    chi = float(((counts - expected)[seen] ** 2 / expected[seen]).sum())
    free = int(seen.sum()) - 1
    assert (
        abs(chi - free) < 5 * (2 * free) ** 0.5
    )  # mean and five standard deviations of χ²: neither worse nor too good


def test_tokens_of_a_sequence_follow_the_law_at_every_place_and_do_not_depend_on_each_other():
    ids = Zipf(400_000, 2, 1.0, 0.0).draw(PLAIN, 3, seed=0)
    pairs = (ids[:, 0] * 3 + ids[:, 1]).bincount(minlength=9).double() / len(ids)
    p = torch.tensor([6.0, 3.0, 2.0]).double() / 11
    assert float((pairs.view(3, 3) - p[:, None] * p).abs().max()) < 5 * 0.5 / len(ids) ** 0.5


def test_the_seed_decides_and_no_global_state_is_touched():
    state = torch.random.get_rng_state()
    one, again, other = (Zipf(640, 10).draw(PLAIN, 50, seed) for seed in (0, 0, 1))
    assert torch.equal(one, again) and not torch.equal(one, other)
    assert torch.equal(torch.random.get_rng_state(), state)


# ---------------------------------------------------------------- what is drawn from


@pytest.mark.parametrize("tokens,length,shape", [(64, 8, (8, 8)), (65, 8, (9, 8)), (8, 8, (1, 8)), (3, 1, (3, 1))])
def test_as_many_tokens_as_are_asked(tokens, length, shape):
    ids = Zipf(tokens, length).draw(PLAIN, 20, 0)
    assert ids.shape == shape and ids.dtype == torch.int64


def test_no_sequence_is_longer_than_the_network_has_places_for():
    assert Zipf(640, 64).draw(configured(max_position_embeddings=16), 20, 0).shape == (40, 16)
    assert Zipf(640, 64).draw(PLAIN, 20, 0, longest=32).shape == (20, 32)


@pytest.mark.parametrize("name", ["bos", "eos", "pad", "unk", "cls", "sep", "mask", "decoder_start"])
def test_special_tokens_of_the_configuration_are_left_out(name):
    ids = Zipf(2000, 10).draw(configured(**{f"{name}_token_id": 0}), 5, 0)
    assert ids.unique().tolist() == [1, 2, 3, 4]


def test_the_vocabulary_may_be_smaller_than_the_table():
    assert Zipf(2000, 10).draw(configured(vocab_size=4), 64, 0).unique().tolist() == [0, 1, 2, 3]


@pytest.mark.parametrize("special,before,after", [("[CLS] $A [SEP]", [BEGIN], [END]), ("", [], [])])
def test_a_tokenizer_beside_the_weights_says_what_is_special_and_what_stands_around(
    tmp_path: Path, special, before, after
):
    cut = tokenizer(special)
    cut.save_pretrained(tmp_path)
    ids = Zipf(20_000, 10, exponent=0.5).draw(configured(_name_or_path=str(tmp_path)), 64, 0)
    assert ids.shape == (2000, 10)
    assert ids[:, : len(before)].tolist() == [before] * 2000
    assert ids[:, 10 - len(after) :].tolist() == [after] * 2000
    inner = ids[:, len(before) : 10 - len(after)].unique().tolist()
    assert inner == [i for i in range(len(cut)) if i not in cut.all_special_ids]


# ---------------------------------------------------------------- with a network


def test_a_network_without_transformers_is_cut_on_it_in_sequences_of_the_example():
    net = reader()
    made = cp.plan(net, torch.zeros(2, 8, dtype=torch.int64), remove={"*": 0.5}, prior="zipf")
    assert made.recipe["prior"] == f"{Zipf().said}, in the dense network"
    assert made.recipe["data_used"] is False
    assert made.cuts[0].kept.numel() == 8
    even = cp.plan(net, torch.zeros(2, 8, dtype=torch.int64), remove={"*": 0.5}, prior="noise")
    assert made.cuts[0].evidence != even.cuts[0].evidence


def test_what_a_cut_does_is_measured_on_tokens_of_another_seed():
    small = cp.prune(reader(), torch.zeros(2, 8, dtype=torch.int64), remove={"*": 0.5}, prior=Zipf(640, 8))
    outputs = small.plan.recipe["outputs"]
    assert outputs["inputs"] == "640 random tokens drawn with another seed" and outputs["held_out"]
    assert outputs["output_error"] > 0


# ---------------------------------------------------------------- refusals


def test_a_network_that_reads_no_tokens_is_told():
    net = nn.Sequential(nn.Conv2d(3, 4, 3), nn.ReLU(), nn.Conv2d(4, 2, 3))
    with pytest.raises(InvalidInputError, match="reads no tokens, so that Zipf's law is no prior of it"):
        cp.plan(net, torch.randn(2, 3, 8, 8), remove=0.3, prior="zipf")


@pytest.mark.parametrize("wrong", [
    Zipf(8, 16), Zipf(8, 0), Zipf(8, 4, -1.0), Zipf(8, 4, float("inf")), Zipf(8, 4, float("nan")), Zipf(8, 4, 1.0, -1.0),
])  # fmt: skip
def test_numbers_that_cannot_be_meant_are_told(wrong):
    with pytest.raises(InvalidInputError, match="was given: give one sequence of tokens at least"):
        wrong.draw(PLAIN, 10, 0)


def test_where_nothing_is_left_to_draw_it_is_told(tmp_path):
    with pytest.raises(InvalidInputError, match="out of 0 that are not special"):
        Zipf(8, 4).draw(configured(eos_token_id=[0, 1]), 2, 0)
    tokenizer().save_pretrained(tmp_path)
    with pytest.raises(InvalidInputError, match="sequences of 2 tokens"):
        Zipf(8, 2).draw(configured(_name_or_path=str(tmp_path)), 64, 0)


def test_what_it_says_of_itself():
    assert Zipf(100, 10, 1.2, 0.0).said == "random tokens by Zipf's law (100 tokens, exponent 1.2, offset 0)"

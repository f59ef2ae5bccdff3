"""Tokens that a masked language model fills in: the law they come from, what the model is shown, and what is refused."""

from __future__ import annotations

import math
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from helpers import seeded
from test_generated import bound, chi_square
from test_text import BEGIN, END, tokenizer
from torch import Tensor, nn

import coreprune as cp
from coreprune.errors import InvalidInputError
from coreprune.priors.filled import MaskFilled, fills
from coreprune.priors.zipf import Zipf

VOCABULARY, MASK = 24, 4
BLOCKS = {"hidden_size": 16, "intermediate_size": 24, "num_hidden_layers": 2, "num_attention_heads": 2}
SPECIAL = {"vocab_size": VOCABULARY, "pad_token_id": 0, "mask_token_id": MASK, "tie_word_embeddings": False}
FEW = MaskFilled(tokens=96, length=12, sweeps=2)
ORDINARY = [token for token in range(VOCABULARY) if token not in {0, MASK}]


def bert(name: str = "BertForMaskedLM", dtype: torch.dtype = torch.float64, **settings: Any) -> Any:
    import transformers

    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        made = getattr(transformers, name)(transformers.BertConfig(**{**SPECIAL, **BLOCKS, **settings}))
    with torch.no_grad():
        for p in made.parameters():  # far from even: its choices then tell what it read
            p.copy_(torch.randn(p.shape, generator=seeded(p.numel())) * (0.7 if p.dim() > 1 else 1))
    return made.to(dtype).eval()


class Pairs(nn.Module):
    """Two tokens with a joint law p, (V, V): at a mask it says what the other one makes likely."""

    def __init__(self, p: Tensor, mask: int) -> None:
        super().__init__()
        self.p, self.mask = nn.Parameter(p, requires_grad=False), mask
        own = SimpleNamespace(vocab_size=len(p) + 1, mask_token_id=mask)
        self.config = SimpleNamespace(get_text_config=lambda: own, mask_token_id=mask)
        self.shown: list[Tensor] = []

    def get_output_embeddings(self) -> Any:
        return self.p

    def forward(self, input_ids: Tensor) -> Any:
        self.shown.append(input_ids.clone())
        law = torch.cat([self.p, self.p.new_zeros(len(self.p), 1)], 1)
        both = torch.cat([law, law.sum(0, keepdim=True)])  # the last row: the other one is masked as well
        first, last = input_ids[:, 0], input_ids[:, 1]
        other = torch.cat([self.p.T, self.p.new_zeros(len(self.p), 1)], 1)
        back = torch.cat([other, other.sum(0, keepdim=True)])
        return SimpleNamespace(logits=torch.stack([back[last], both[first]], 1).log())


# ---------------------------------------------------------------- the law


@pytest.mark.parametrize("start", ["masks", "zipf"])
@pytest.mark.parametrize("temperature", [1.0, 0.5])
@pytest.mark.parametrize("sweeps", [1, 4])
def test_frequencies_are_those_of_a_head_that_is_set_to_them(start, temperature, sweeps):
    model = bert()
    scores = torch.linspace(-1.5, 1.5, VOCABULARY, dtype=torch.float64)
    with torch.no_grad():
        model.cls.predictions.decoder.weight.zero_()
        model.cls.predictions.decoder.bias.copy_(scores)
        model.cls.predictions.bias.copy_(scores)
    prior = MaskFilled(tokens=20_000, length=20, sweeps=sweeps, temperature=temperature, start=start, together=500)
    counts = prior.draw(model, 0).flatten().bincount(minlength=VOCABULARY).double()
    hidden = torch.tensor([token in {0, MASK} for token in range(VOCABULARY)])
    law = (scores / temperature).masked_fill(hidden, -math.inf).softmax(0)
    assert counts[hidden].sum() == 0
    assert chi_square(counts, law) < bound(VOCABULARY - 3)
    other = (scores / (1.2 * temperature)).masked_fill(hidden, -math.inf).softmax(0)
    assert chi_square(counts, other) > bound(VOCABULARY - 3)  # the test is sharp enough to tell another temperature


def test_one_place_at_a_time_is_gibbs_sampling_of_the_joint_law():
    """From tokens that are drawn by another law, 12 sweeps are enough; from masks the first sweep is exact."""
    p = torch.tensor([[0.3, 0.05, 0.05], [0.05, 0.2, 0.05], [0.02, 0.08, 0.2]], dtype=torch.float64)
    for start, sweeps in (("masks", 1), ("masks", 3), ("zipf", 12)):
        how = MaskFilled(tokens=40_000, length=2, sweeps=sweeps, share=0.5, start=start, together=20_000)
        ids = how.draw(Pairs(p, 3), 0)
        counts = (3 * ids[:, 0] + ids[:, 1]).bincount(minlength=9).double()
        assert chi_square(counts, p.flatten()) < bound(8)
        assert chi_square(counts, (p.sum(1, keepdim=True) * p.sum(0)).flatten()) > bound(8)  # not as if independent


def test_every_place_is_masked_once_in_a_sweep_and_all_else_is_shown():
    p = torch.full((3, 3), 1 / 9, dtype=torch.float64)
    model = Pairs(p, 3).eval()  # which is run itself, and no copy of it
    ids = MaskFilled(tokens=400, length=2, sweeps=3, share=0.5, start="zipf").draw(model, 0)
    shown = torch.stack([torch.cat(model.shown[i::6]) for i in range(6)]).view(3, 2, -1, 2)  # sweep, half, sequence
    masked = shown == 3
    assert bool((masked.sum(3) == 1).all()) and bool((masked.sum(1) == 1).all())
    assert bool((masked[:, 0, :, 0] ^ masked[:, 1, :, 0]).all()) and bool(masked[:, 0, :, 0].any())
    assert torch.equal(shown[2, 1][~masked[2, 1]], ids[~masked[2, 1]])  # the half that was drawn before the last


def test_it_is_what_a_plain_loop_draws():
    model, how = bert(), MaskFilled(tokens=60, length=12, sweeps=2, share=0.3, temperature=0.7, start="zipf")
    found = how.draw(model, 5)
    g, ids = seeded(5), Zipf(60, 12).draw(model, VOCABULARY, 5).tolist()
    for _ in range(2):
        orders = torch.rand(5, 12, generator=g).argsort(1).tolist()
        for low in range(0, 12, 4):
            places = [order[low : low + 4] for order in orders]
            levels = torch.rand(5 * len(places[0]), 1, generator=g).flatten().tolist()
            new = []
            for row, at in zip(ids, places, strict=True):
                shown = torch.tensor([[MASK if i in at else token for i, token in enumerate(row)]])
                with torch.no_grad():
                    scores = model(input_ids=shown).logits[0]
                new.append([scores[i, ORDINARY].float() / 0.7 for i in at])
            for row, at, said in zip(ids, places, new, strict=True):
                for i, one in zip(at, said, strict=True):
                    row[i] = ORDINARY[int((one.softmax(0).cumsum(0) <= levels.pop(0)).sum())]
    assert found.tolist() == ids


# ---------------------------------------------------------------- around, and the model


@pytest.mark.parametrize("start", ["masks", "zipf", "text"])
@pytest.mark.parametrize("beside", [True, False])
def test_tokens_around_a_text_stay_and_no_special_one_is_drawn(tmp_path: Path, start, beside):
    cut = tokenizer()
    cut.add_special_tokens({"mask_token": "[MASK]"})
    size = len(cut)
    model = bert(vocab_size=size, mask_token_id=None)
    if beside:
        cut.save_pretrained(tmp_path)
        model.config._name_or_path = str(tmp_path)
    prior = MaskFilled(tokens=480, length=12, sweeps=1, start=start, tokenizer=None if beside else cut)
    ids = prior.draw(model, 0)
    assert ids.shape == (40, 12)
    assert bool((ids[:, 0] == BEGIN).all()) and bool((ids[:, -1] == END).all())
    assert not set(ids[:, 1:-1].flatten().tolist()) & set(cut.all_special_ids)


@pytest.mark.parametrize("train", [True, False])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16], ids=str)
def test_the_seed_decides_and_the_model_is_left_as_it_was(train, dtype):
    model = bert(dtype=dtype, hidden_dropout_prob=0.5).train(train)
    before = {name: p.detach().clone() for name, p in model.named_parameters()}
    state = torch.random.get_rng_state()
    one, again, other = (FEW.draw(model, seed) for seed in (0, 0, 1))
    assert torch.equal(one, again) and not torch.equal(one, other)
    assert torch.equal(torch.random.get_rng_state(), state)
    assert all(m.training == train for m in model.modules())
    for name, p in model.named_parameters():
        assert p.dtype == dtype and torch.equal(p, before[name]) and not p.is_inference()


def test_no_sequence_is_longer_than_the_model_has_places():
    assert FEW.draw(bert(max_position_embeddings=8), 0).shape == (12, 8)


@pytest.mark.parametrize("share,passes", [(1.0, 1), (0.5, 2), (0.3, 3), (0.01, 12)])
def test_a_share_says_how_many_passes_a_sweep_takes(share, passes):
    model, calls = bert(), []
    model.register_forward_pre_hook(lambda *_: calls.append(1))
    MaskFilled(tokens=36, length=12, sweeps=2, share=share).draw(model, 0)
    assert len(calls) == 2 * passes


# ---------------------------------------------------------------- with a network


def test_an_encoder_is_cut_on_what_it_fills_in():
    model = bert(dtype=torch.float32)
    example = {"input_ids": torch.zeros(2, 8, dtype=torch.long)}
    small = cp.prune(model, example, remove={"*": 0.5}, prior=FEW, budget=None)
    recipe = small.plan.recipe
    assert recipe["prior"] == (
        "tokens that the model filled into masks (96 tokens, 2 sweeps from masks, temperature 1), in the dense network"
    )
    assert recipe["data_used"] is False and "outputs" not in recipe
    driven = cp.prune(model, example, budget={"cosine": 0.9}, prior=FEW).plan.recipe["outputs"]
    assert driven["inputs"] == "96 tokens that were filled into masks with another seed" and driven["held_out"]
    mixed = cp.plan(model, example, remove={"*": 0.5}, prior=cp.Mixture({FEW: 1, Zipf(96, 12): 1})).recipe["prior"]
    assert mixed.startswith("mixture of 0.5 tokens that the model filled into masks (96 tokens")


# ---------------------------------------------------------------- who fills, refusals


@pytest.mark.parametrize(
    "name,able",
    [("BertForMaskedLM", True), ("BertForPreTraining", True), ("BertModel", False), ("BertLMHeadModel", False),
     ("BertForSequenceClassification", False)],
)  # fmt: skip
def test_who_fills_masks(name, able):
    model = bert(name, dtype=torch.float32, is_decoder=name == "BertLMHeadModel")
    assert fills(model) == able
    if able:
        assert FEW.draw(model, 0).shape == (8, 12)
    else:
        with pytest.raises(InvalidInputError, match=f"{name} has no head that fills masks: load its class for masked"):
            FEW.draw(model, 0)


def test_what_is_no_network_of_transformers_is_told():
    assert not fills(nn.Linear(2, 2))
    with pytest.raises(InvalidInputError, match="Linear has no head that fills masks"):
        FEW.draw(nn.Linear(2, 2), 0)


def test_the_mask_itself_is_never_drawn_wherever_it_is_named():
    model = Pairs(torch.full((3, 3), 1 / 9, dtype=torch.float64), 2)  # which the head would put in as often as any
    model.config.get_text_config = lambda: SimpleNamespace(vocab_size=3)
    ids = MaskFilled(tokens=200, length=2, share=0.5).draw(model.eval(), 0)
    assert set(ids.flatten().tolist()) == {0, 1}


def test_a_mask_that_nobody_knows_is_told():
    with pytest.raises(InvalidInputError, match="names a mask token: give prior=MaskFilled"):
        FEW.draw(bert(mask_token_id=None), 0)


def test_a_head_that_says_nothing_of_the_vocabulary_is_told():
    model = bert()
    model.register_forward_hook(lambda *_: SimpleNamespace(logits=torch.zeros(8, 12, 5)))
    with pytest.raises(InvalidInputError, match="does not put out a number for each token"):
        FEW.draw(model, 0)


@pytest.mark.parametrize("wrong", [
    {"tokens": 5}, {"length": 0}, {"sweeps": 0}, {"share": 0.0}, {"share": 1.1}, {"share": math.nan},
    {"temperature": 0.0}, {"temperature": math.nan}, {"temperature": math.inf}, {"together": 0}, {"start": "noise"},
], ids=str)  # fmt: skip
def test_numbers_that_cannot_be_meant_are_refused(wrong):
    with pytest.raises(InvalidInputError, match="give one sequence and one sweep at least"):
        MaskFilled(**{"tokens": 96, "length": 12, **wrong}).draw(bert(), 0)


# ---------------------------------------------------------------- what is said


def test_progress_only_rises_and_ends_at_the_end():
    calls: list[tuple[int, int, str]] = []
    MaskFilled(tokens=100, length=10, sweeps=2, together=4).draw(bert(), 0, lambda *call: calls.append(call))
    done = [call[0] for call in calls]
    assert done == sorted(done) and 0 < done[0] < 40 and done[-1] == 100
    assert {call[1:] for call in calls} == {(100, "filling masks")}


def test_the_prior_in_words():
    said = MaskFilled(tokens=4096, sweeps=1, temperature=0.8, start="text").said
    assert said == "tokens that the model filled into masks (4,096 tokens, 1 sweep from text, temperature 0.8)"

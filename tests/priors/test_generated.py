"""Text that a model writes itself: the law it is sampled from, what decides it, and that the model is left alone."""

from __future__ import annotations

import math
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from helpers import seeded
from test_text import tokenizer
from torch import Tensor, nn

import coreprune as cp
from coreprune.errors import InvalidInputError
from coreprune.priors.generated import OPENINGS, Generated, sample, writes

VOCABULARY, BEGIN, END = 23, 1, 2
SPECIAL = {"vocab_size": VOCABULARY, "bos_token_id": BEGIN, "eos_token_id": END, "pad_token_id": 0}
BLOCKS = {"hidden_size": 16, "intermediate_size": 24, "num_hidden_layers": 2, "num_attention_heads": 2}
FEW = Generated(tokens=96, length=12)


def built(model: str, config: str, **settings: Any) -> nn.Module:
    import transformers

    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        made = getattr(transformers, model)(getattr(transformers, config)(**settings))
    with torch.no_grad():
        for p in made.parameters():  # far from even: its choices then tell what it read
            p.copy_(torch.randn(p.shape, generator=seeded(p.numel())) * (1.5 if p.dim() > 1 else 1))
    return made.eval()


def llama(dtype: torch.dtype = torch.float32, **settings: Any) -> nn.Module:
    return built("LlamaForCausalLM", "LlamaConfig", **{**SPECIAL, **BLOCKS, **settings}).to(dtype)


class Table(nn.Module):
    """A model whose next token depends on the last one alone, by a table of logits, (V, V)."""

    def __init__(self, logits: Tensor, end: Any = None, place: str = "") -> None:
        super().__init__()
        self.logits = nn.Parameter(logits)
        own = SimpleNamespace(vocab_size=len(logits), bos_token_id=None, eos_token_id=end)
        self.config = SimpleNamespace(get_text_config=lambda: own, is_encoder_decoder=False, _name_or_path=place)

    def can_generate(self) -> bool:
        return True

    def forward(self, input_ids: Tensor, past_key_values: Any = None, use_cache: bool = False) -> Any:
        assert use_cache
        return SimpleNamespace(logits=self.logits[input_ids], past_key_values=past_key_values)


def bound(freedom: int, surprise: float = 25.0) -> float:
    """What χ² exceeds with a probability of at most exp(−surprise): Laurent and Massart 2000, lemma 1."""
    return freedom + 2 * math.sqrt(freedom * surprise) + 2 * surprise


def chi_square(counts: Tensor, law: Tensor) -> float:
    expected = counts.sum() * law
    return float(((counts - expected).square() / expected)[law > 0].sum())


# ---------------------------------------------------------------- the law


@pytest.mark.parametrize("temperature", [0.5, 1.0, 2.0])
def test_frequencies_are_those_of_softmax(temperature):
    logits = torch.linspace(-1.5, 1.5, 9)
    model = Table(logits.expand(9, 9).clone(), end=4)
    ids = sample(model, torch.zeros(4000, 1, dtype=torch.long), 9, seeded(0), temperature)[:, 1:]
    counts = ids.flatten().bincount(minlength=9).double()
    law = (logits.double() / temperature).masked_fill(torch.arange(9) == 4, -math.inf).softmax(0)
    assert counts[4] == 0
    assert chi_square(counts, law) < bound(7)
    other = (logits.double() / (1.1 * temperature)).masked_fill(torch.arange(9) == 4, -math.inf).softmax(0)
    assert chi_square(counts, other) > bound(7)  # the test is sharp enough to tell another temperature


def test_every_token_follows_from_the_one_before_it():
    logits = 2 * torch.randn(6, 6, generator=seeded(1))
    ids = sample(Table(logits), torch.randint(6, (3000, 1), generator=seeded(2)), 8, seeded(3))
    pairs = torch.stack([ids[:, :-1].flatten(), ids[:, 1:].flatten()])
    for last in range(6):
        counts = pairs[1, pairs[0] == last].bincount(minlength=6).double()
        assert chi_square(counts, logits[last].double().softmax(0)) < bound(5)
        assert chi_square(counts, logits[(last + 1) % 6].double().softmax(0)) > bound(5)


def test_numbers_of_the_generator_are_levels_of_the_cumulative_law():
    """(0.5, 0.25, 0.25): a level below a half is the first token, and so on."""
    model = Table(torch.tensor([0.5, 0.25, 0.25]).log().expand(3, 3).clone())
    ids = sample(model, torch.zeros(50, 1, dtype=torch.long), 5, seeded(4))
    levels = torch.cat([torch.rand(50, 1, generator=g) for g in [seeded(4)] for _ in range(4)], 1)
    assert torch.equal(ids[:, 1:], (levels >= 0.5).long() + (levels >= 0.75).long())


@pytest.mark.parametrize("level,expected", [(0.0, 1), (1 - 2**-24, 998)])
def test_the_ends_of_the_cumulative_law_are_tokens_that_can_be_drawn(monkeypatch, level, expected):
    """The lowest and the highest level that there are, where the first and the last token end a text."""
    logits = torch.randn(40, 1000, generator=seeded(8))
    monkeypatch.setattr(torch, "rand", lambda *shape, generator: torch.full(shape, level))
    for row in logits:
        ids = sample(Table(row.expand(1000, 1000), [0, 999]), torch.zeros(1, 1, dtype=torch.long), 2, seeded(0))
        assert int(ids[0, 1]) == expected


def test_the_cache_changes_nothing():
    """Against a plain loop that reads the whole text again for every token."""
    model, starts = llama(torch.float64), torch.randint(VOCABULARY, (5, 2), generator=seeded(5))
    found = sample(model, starts, 14, seeded(6), 0.7)
    g, ids = seeded(6), starts
    with torch.no_grad():
        while ids.shape[1] < 14:
            scores = model(input_ids=ids, use_cache=False).logits[:, -1] / 0.7
            scores[:, END] = -math.inf
            law, level = scores.softmax(-1), torch.rand(5, 1, generator=g)
            ids = torch.cat([ids, (law.cumsum(-1) <= level).sum(1, keepdim=True)], 1)
    assert torch.equal(found, ids)


@pytest.mark.parametrize("end", [3, [3, 8], (0, 8), None], ids=str)
def test_tokens_that_end_a_text_are_never_drawn(end):
    """Even where the model wants nothing else, and at either end of the vocabulary."""
    ends = [] if end is None else [end] if isinstance(end, int) else list(end)
    logits = torch.zeros(9, 9)
    logits[:, ends] = 50.0
    ids = sample(Table(logits, end), torch.zeros(500, 1, dtype=torch.long), 8, seeded(7))[:, 1:]
    assert set(ids.flatten().tolist()) == set(range(9)) - set(ends)


def test_texts_begin_as_the_model_begins_them_and_then_anywhere():
    ids = Generated(tokens=16_000, length=4, together=4000).draw(llama(), 0)
    assert ids.shape == (4000, 4) and ids.dtype == torch.int64
    assert bool((ids[:, 0] == BEGIN).all())
    even = torch.full((VOCABULARY,), 1 / VOCABULARY, dtype=torch.float64)
    assert chi_square(ids[:, 1].bincount(minlength=VOCABULARY).double(), even) < bound(VOCABULARY - 1)
    assert not bool((ids[:, 2:] == END).any())


def test_a_model_without_a_beginning_begins_anywhere():
    ids = Generated(tokens=400, length=4).draw(llama(bos_token_id=None), 0)
    assert len(set(ids[:, 0].tolist())) > VOCABULARY // 2


@pytest.mark.parametrize("tokens,length,count", [(96, 12, 8), (97, 12, 9), (12, 12, 1), (100, 25, 4)])
@pytest.mark.parametrize("together", [1, 3, 64])
def test_there_are_at_least_as_many_tokens_as_were_asked(tokens, length, count, together):
    assert Generated(tokens, length, together=together).draw(llama(), 0).shape == (count, length)


def test_several_temperatures_are_taken_in_turn():
    logits = torch.linspace(-1.5, 1.5, 9)
    model = Table(logits.expand(9, 9).clone())
    heat = (0.5, 1.0, 2.0)
    ids = Generated(tokens=45_000, length=9, temperature=heat, together=64).draw(model, 0)[:, 1:]
    for i, temperature in enumerate(heat):
        counts = ids[i::3].flatten().bincount(minlength=9).double()
        assert chi_square(counts, (logits.double() / temperature).softmax(0)) < bound(8)
        assert chi_square(counts, (logits.double() / heat[i - 1]).softmax(0)) > bound(8)


def test_one_temperature_is_the_same_alone_and_as_several():
    model = llama(torch.float64)
    one, several = (Generated(96, 12, heat).draw(model, 0) for heat in (0.5, [0.5, 0.5]))
    assert torch.equal(one, several)


# ---------------------------------------------------------------- openings

LINES = ("abcabc", "xy", "the quick", "zz zz zz zz zz")  # letters and blanks are a token each, behind [CLS]
FITTING = {"vocab_size": 30, "bos_token_id": 1, "eos_token_id": 2}


def test_starts_of_any_length_are_gone_on_from_as_each_alone_would_be():
    """Against a plain loop that reads the whole text again, row by row."""
    model = llama(torch.float64)
    rows = [[5], [5, 6, 7, 8], [9, 10], [11, 12, 13, 14, 15, 16, 17]]
    starts = nn.utils.rnn.pad_sequence([torch.tensor(row) for row in rows], batch_first=True, padding_value=-1)
    found = sample(model, starts, 12, seeded(6), torch.tensor([[0.7], [1.0], [1.5], [0.4]], dtype=torch.float64))
    g, ids = seeded(6), [list(row) for row in rows]
    for at in range(1, 12):
        levels = torch.rand(4, 1, generator=g)
        for row, level, heat in zip(ids, levels, (0.7, 1.0, 1.5, 0.4), strict=True):
            if len(row) > at:
                continue
            with torch.no_grad():
                scores = model(input_ids=torch.tensor([row]), use_cache=False).logits[0, -1] / heat
            scores[END] = -math.inf
            row.append(int((scores.softmax(-1).cumsum(-1) <= level).sum()))
    assert found.tolist() == ids


def test_sequences_start_with_the_lines_as_often_as_each_other_in_an_order_of_the_seed():
    prior = Generated(tokens=10 * 24, length=24, starts=LINES, tokenizer=tokenizer("[CLS] $A"))
    ids, other = (prior.draw(llama(**FITTING), seed).tolist() for seed in (0, 1))
    whole = [tokenizer("[CLS] $A")(line)["input_ids"][:12] for line in LINES]
    began = [next(i for i, line in enumerate(whole) if row[: len(line)] == line) for row in ids]
    assert all(sorted(began[i : i + 4]) == [0, 1, 2, 3] for i in (0, 4)) and len(set(began[8:])) == 2
    assert began != [next(i for i, line in enumerate(whole) if row[: len(line)] == line) for row in other]
    assert prior.sampled(llama(**FITTING), 0) == 240 - sum(len(whole[i]) for i in began)


def test_a_file_of_lines_is_as_the_lines_and_both_are_the_users(tmp_path: Path):
    file = tmp_path / "own.txt"
    file.write_text("\n\n".join(LINES) + "\n \n", encoding="utf-8")
    model, cut = llama(**FITTING), tokenizer()
    drawn = [Generated(96, 12, starts=s, tokenizer=cut) for s in (LINES, list(LINES), file, str(file))]
    assert all(torch.equal(one.draw(model, 0), drawn[0].draw(model, 0)) for one in drawn)
    assert all(one.data_used for one in drawn)
    assert not Generated().data_used and not Generated(starts="openings").data_used
    made = cp.plan(model, {"input_ids": torch.zeros(2, 6, dtype=torch.long)}, remove={"*": 0.5}, prior=drawn[0])
    assert made.recipe["data_used"] is True


def test_the_openings_of_the_package_are_many_and_need_the_tokenizer_beside_the_weights(tmp_path: Path):
    lines = OPENINGS.read_text(encoding="utf-8").splitlines()
    assert len(set(lines)) == len(lines) == 128
    tokenizer().save_pretrained(tmp_path)
    model = Table(torch.zeros(29, 29), place=str(tmp_path))
    ids = Generated(tokens=128 * 40, length=40, starts="openings").draw(model, 0)
    whole = {tuple(tokenizer()(line)["input_ids"][:20]) for line in lines}
    assert {tuple(row[:20]) for row in ids.tolist()} == whole
    with pytest.raises(InvalidInputError, match="no tokenizer lies beside LlamaForCausalLM, for the lines"):
        Generated(starts="openings").draw(llama(), 0)


@pytest.mark.parametrize(
    "starts,found", [((), "no line"), (["", "  "], "no line"), ("file", "no line"), (["x"], "past")]
)
def test_lines_that_give_nothing_or_do_not_fit_are_refused(tmp_path: Path, starts, found):
    file = tmp_path / "empty.txt"
    file.write_text(" \n\n")
    prior = Generated(96, 12, starts=file if starts == "file" else starts, tokenizer=tokenizer())
    with pytest.raises(InvalidInputError, match=f"starts= has .*{found}"):
        prior.draw(llama(), 0)  # whose vocabulary ends before the letters do


def test_a_file_that_is_not_there_is_told(tmp_path: Path):
    prior = Generated(96, 12, starts=tmp_path / "none.txt", tokenizer=tokenizer())
    with pytest.raises(InvalidInputError, match=r"none\.txt cannot be read .*check the path"):
        prior.draw(llama(), 0)


# ---------------------------------------------------------------- the seed


def test_the_seed_decides_every_bit_and_nothing_else_does():
    model = llama()
    first = FEW.draw(model, 3)
    torch.manual_seed(99)
    state = torch.random.get_rng_state()
    assert torch.equal(FEW.draw(model, 3), first)
    assert torch.equal(torch.random.get_rng_state(), state)
    assert not torch.equal(FEW.draw(model, 4), first)


def test_another_model_writes_another_text():
    other = llama()
    with torch.no_grad():
        other.lm_head.weight.neg_()
    assert not torch.equal(FEW.draw(other, 3)[:, 2:], FEW.draw(llama(), 3)[:, 2:])


# ---------------------------------------------------------------- the model


@pytest.mark.parametrize("narrow", [True, False])
@pytest.mark.parametrize("train", [True, False])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16], ids=str)
def test_the_model_is_left_as_it_was(monkeypatch, narrow, train, dtype):
    monkeypatch.setattr("coreprune.priors.generated.narrow", lambda device: narrow)
    model = llama(dtype, attention_dropout=0.5)
    model.train(train)
    model.model.layers[0].eval()
    modes = [m.training for m in model.modules()]
    before = {name: p.detach().clone() for name, p in model.named_parameters()}
    FEW.draw(model, 0)
    assert [m.training for m in model.modules()] == modes
    for name, p in model.named_parameters():
        assert p.dtype == dtype and torch.equal(p, before[name]) and p.requires_grad and p.grad is None
        assert not p.is_inference()
    model(torch.zeros(1, 3, dtype=torch.long)).logits.sum().backward()


def test_dropout_is_off_while_writing():
    model = llama(torch.float64, attention_dropout=0.9)
    quiet = FEW.draw(model, 0)
    assert torch.equal(FEW.draw(model.train(), 0), quiet)


# ---------------------------------------------------------------- who writes


def test_who_can_write():
    assert writes(llama())
    assert not writes(nn.Linear(2, 2))
    assert not writes(built("BertModel", "BertConfig", vocab_size=VOCABULARY, **BLOCKS))
    assert not writes(built("LlamaModel", "LlamaConfig", **SPECIAL, **BLOCKS))
    t5 = {"d_model": 16, "d_kv": 4, "d_ff": 24, "num_layers": 1, "num_heads": 2, "vocab_size": VOCABULARY}
    assert not writes(built("T5ForConditionalGeneration", "T5Config", **t5, decoder_start_token_id=0))


@pytest.mark.parametrize("name", ["BertModel", "T5ForConditionalGeneration", "Linear"])
def test_what_cannot_write_is_told_so(name):
    if name == "Linear":
        model = nn.Linear(2, 2)
    elif name == "BertModel":
        model = built(name, "BertConfig", vocab_size=VOCABULARY, **BLOCKS)
    else:
        t5 = {"d_model": 16, "d_kv": 4, "d_ff": 24, "num_layers": 1, "num_heads": 2, "vocab_size": VOCABULARY}
        model = built(name, "T5Config", **t5, decoder_start_token_id=0)
    with pytest.raises(InvalidInputError, match=f"{name} cannot write text of its own: give another prior"):
        FEW.draw(model, 0)


@pytest.mark.parametrize(
    "prior",
    [
        Generated(length=3),
        Generated(length=0),
        Generated(tokens=11, length=12),
        Generated(tokens=-1),
        Generated(temperature=0.0),
        Generated(temperature=-1.0),
        Generated(temperature=math.nan),
        Generated(temperature=()),
        Generated(temperature=(1.0, 0.0)),
        Generated(together=0),
    ],
    ids=str,
)
def test_numbers_that_cannot_be_meant_are_refused(prior):
    with pytest.raises(InvalidInputError, match="give at least 4 tokens"):
        prior.draw(llama(), 0)


def test_no_text_is_longer_than_the_model_has_places():
    sizes = {"n_embd": 16, "n_layer": 1, "n_head": 2, "n_inner": 24, "n_positions": 10}
    model = built("GPT2LMHeadModel", "GPT2Config", **SPECIAL, **sizes)
    ids = Generated(tokens=96, length=12).draw(model, 0)
    assert ids.shape == (10, 10)


# ---------------------------------------------------------------- what is said


def test_progress_only_rises_and_ends_at_the_end():
    calls: list[tuple[int, int, str]] = []
    Generated(tokens=100, length=10, together=4).draw(llama(), 0, lambda *call: calls.append(call))
    done = [call[0] for call in calls]
    assert done == sorted(set(done)) and done[0] > 0 and done[-1] == 100
    assert {call[1:] for call in calls} == {(100, "writing text")}


def test_the_prior_in_words():
    prior = Generated(tokens=32_768, temperature=0.8)
    assert prior.said == "text that the model sampled itself (32,768 tokens, temperature 0.8)"
    several = Generated(tokens=4096, temperature=[0.8, 1], starts="openings")
    assert several.said == (
        "text that the model sampled itself from the openings of coreprune (4,096 tokens, temperatures 0.8, 1)"
    )
    assert Generated(starts="a/b.txt").said.startswith("text that the model sampled itself from the lines of b.txt (")
    assert Generated(starts=["a", "b"]).said.startswith("text that the model sampled itself from 2 lines given (")

"""Text as a prior: the generic text, how a text is cut into sequences, and what is refused."""

from __future__ import annotations

from itertools import pairwise
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from torch import nn

from coreprune.errors import InvalidInputError
from coreprune.priors.text import GENERIC, Text, reads

LETTERS = "abcdefghijklmnopqrstuvwxyz"
UNKNOWN, BEGIN, END = 0, 1, 2


def tokenizer(special: str = "[CLS] $A [SEP]"):
    """One token for each letter, whose number is 3 and more, and one for all else."""
    from tokenizers import Tokenizer, models, pre_tokenizers, processors
    from transformers import PreTrainedTokenizerFast

    known = {"[UNK]": UNKNOWN, "[CLS]": BEGIN, "[SEP]": END} | {c: i + 3 for i, c in enumerate(LETTERS)}
    made = Tokenizer(models.WordLevel(known, "[UNK]"))
    made.pre_tokenizer = pre_tokenizers.Split("", "isolated")
    if special:
        ends = [("[CLS]", BEGIN), ("[SEP]", END)]
        made.post_processor = processors.TemplateProcessing(single=special, special_tokens=ends)
    return PreTrainedTokenizerFast(tokenizer_object=made, unk_token="[UNK]", cls_token="[CLS]", sep_token="[SEP]")


def beside(folder: Path) -> nn.Module:
    """A network that says it was read from a folder."""
    model = nn.Linear(2, 2)
    model.config = SimpleNamespace(_name_or_path=str(folder))
    return model


def written(folder: Path, text: str) -> Path:
    file = folder / "own.txt"
    file.write_text(text, encoding="utf-8")
    return file


# ---------------------------------------------------------------- the text that comes with the package


def test_the_generic_text_is_prose_of_a_size_that_can_be_shipped():
    raw = GENERIC.read_bytes()
    text = raw.decode("utf-8")
    assert 100_000 < len(raw) <= 300_000
    assert sum(c.isascii() for c in text) > 0.995 * len(text)
    assert sum(c.isalpha() or c.isspace() for c in text) > 0.9 * len(text)
    assert not [c for c in set(text) if not c.isprintable() and c != "\n"]
    words = text.split()
    assert len(set(words)) > 5000 and max(map(len, words)) < 100
    pieces = text.split("\n\n")
    assert len(set(pieces)) == len(pieces) > 200


def test_the_generic_text_makes_the_sequences_that_are_asked_by_default():
    ids = Text(tokenizer=tokenizer()).draw(nn.Linear(2, 2))
    assert ids.shape == (Text().tokens // Text().length, Text().length) and ids.dtype == torch.int64
    assert len(ids.unique(dim=0)) == len(ids)
    assert len(ids.unique()) == len(LETTERS) + 3


# ---------------------------------------------------------------- windows


@pytest.mark.parametrize("special,around", [
    ("[CLS] $A [SEP]", ([BEGIN], [END])),
    ("[CLS] [CLS] $A", ([BEGIN, BEGIN], [])),
    ("$A [SEP]", ([], [END])),
    ("", ([], [])),
])  # fmt: skip
def test_every_sequence_begins_and_ends_as_the_tokenizer_would_have_it(tmp_path, special, around):
    before, after = around
    file = written(tmp_path, LETTERS * 3)
    ids = Text(file, tokenizer(special), length=10).draw(nn.Linear(2, 2))
    inner = 10 - len(before) - len(after)
    assert ids.shape == (78 // inner, 10)
    assert ids[:, : len(before)].tolist() == [before] * len(ids)
    assert ids[:, 10 - len(after) :].tolist() == [after] * len(ids)
    running = ids[:, len(before) : 10 - len(after)].flatten()
    assert running.tolist() == [i % 26 + 3 for i in range(len(ids) * inner)]  # all tokens once, in order


def test_pieces_follow_each_other_without_special_tokens_and_blank_lines_are_left_out(tmp_path):
    file = written(tmp_path, "abc\n\n   \ndefg\nhij\n")
    ids = Text(file, tokenizer(), length=7).draw(nn.Linear(2, 2))
    assert ids[:, 1:-1].flatten().tolist() == [*range(3, 10), UNKNOWN, 10, 11]  # a line within a piece ends as it does


@pytest.mark.parametrize("wanted", [1, 2, 3, 7, 20])
def test_windows_are_spread_evenly_from_the_first_to_the_last(tmp_path, wanted):
    text = "".join(LETTERS[i // 26 % 26] + LETTERS[i % 26] for i in range(20))
    ids = Text(written(tmp_path, text), tokenizer(""), tokens=2 * wanted, length=2).draw(nn.Linear(2, 2))
    at = ((ids[:, 0] - 3) * 26 + ids[:, 1] - 3).tolist()
    assert len(at) == wanted and at == sorted(set(at)) and at[0] == 0
    if wanted > 1:
        steps = [b - a for a, b in pairwise(at)]
        assert at[-1] == 19 and max(steps) - min(steps) <= 1


def test_no_more_than_the_text_has(tmp_path):
    file = written(tmp_path, LETTERS)
    assert Text(file, tokenizer(""), tokens=10**6, length=5).draw(nn.Linear(2, 2)).shape == (5, 5)


def test_drawing_is_the_same_every_time_and_draws_no_random_number():
    prior, one, other = Text(tokenizer=tokenizer(), tokens=512, length=16), nn.Linear(2, 2), nn.Linear(3, 3)
    state = torch.random.get_rng_state()
    assert torch.equal(prior.draw(one), prior.draw(other))
    assert torch.equal(torch.random.get_rng_state(), state)


# ---------------------------------------------------------------- the tokenizer beside the weights


def test_a_tokenizer_beside_the_weights_is_found(tmp_path):
    tokenizer().save_pretrained(tmp_path)
    model = beside(tmp_path)
    assert reads(model)
    prior = Text(tokens=512, length=16)
    given = Text(tokenizer=tokenizer(), tokens=512, length=16)
    assert torch.equal(prior.draw(model), given.draw(nn.Linear(2, 2)))


def test_a_tokenizer_of_nothing_but_special_tokens_is_none(tmp_path):
    """`transformers` makes one where a checkpoint has a configuration and no file of a tokenizer."""
    from transformers import BertConfig, BertModel

    sizes = {"vocab_size": 50, "hidden_size": 8, "intermediate_size": 8, "num_hidden_layers": 1}
    BertModel(BertConfig(**sizes, num_attention_heads=2)).save_pretrained(tmp_path)
    assert not reads(BertModel.from_pretrained(tmp_path))


@pytest.mark.parametrize("place", ["", "no/such/folder", "empty", "damaged", None])
def test_where_there_is_none_none_is_found(tmp_path, place):
    folder = tmp_path / place if place in {"empty", "damaged"} else place
    if place in {"empty", "damaged"}:
        folder.mkdir()
    if place == "damaged":
        (folder / "tokenizer.json").write_text("{")
    model = beside(folder) if folder is not None else nn.Linear(2, 2)
    if place == "":
        model = beside("")
    assert not reads(model)
    with pytest.raises(InvalidInputError, match=r"no tokenizer lies beside Linear: give prior=Text\(tokenizer"):
        Text().draw(model)


# ---------------------------------------------------------------- refusals


def test_a_file_that_is_not_there_is_told(tmp_path):
    with pytest.raises(InvalidInputError, match=r"none\.txt cannot be read .*check the path"):
        Text(tmp_path / "none.txt", tokenizer()).draw(nn.Linear(2, 2))


def test_a_file_that_is_no_text_is_told(tmp_path):
    file = tmp_path / "own.txt"
    file.write_bytes(b"\xff\xfe\x00\x9f" * 50)
    with pytest.raises(InvalidInputError, match="is no text in UTF-8"):
        Text(file, tokenizer()).draw(nn.Linear(2, 2))


@pytest.mark.parametrize("text,length", [("abcdefg", 10), ("", 10), ("\n \n", 10), (LETTERS, 2), (LETTERS, 0)])
def test_too_little_text_or_too_short_a_sequence_is_told(tmp_path, text, length):
    with pytest.raises(InvalidInputError, match=rf"too few for one sequence of {length}: give more text"):
        Text(written(tmp_path, text), tokenizer(), length=length).draw(nn.Linear(2, 2))


# ---------------------------------------------------------------- what is said


def test_only_a_file_of_the_users_is_data(tmp_path):
    own, generic = Text(tmp_path / "own.txt"), Text()
    assert own.data_used and not generic.data_used
    assert own.said == f"measured on text, own.txt (at most {own.tokens:,} tokens)"
    assert (
        generic.said
        == f"generic text of coreprune, written by SmolLM2-135M-Instruct (at most {generic.tokens:,} tokens)"
    )

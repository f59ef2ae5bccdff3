"""Which prior a network gets by itself, and the example's arguments with text in the place of its tokens."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from helpers import seeded
from torch import Tensor, nn

import coreprune as cp
from coreprune.engine import inputs as module
from coreprune.engine import picking, probes
from coreprune.engine.inputs import PRIORS, forced, inputs, prior_of, settled
from coreprune.engine.picking import AFFORDABLE, ENTRY, automatic, picked
from coreprune.errors import InvalidInputError
from coreprune.model.capture import capture
from coreprune.priors.data import Data, Drawn
from coreprune.priors.filled import MaskFilled
from coreprune.priors.gaussian import Gaussian
from coreprune.priors.generated import Generated
from coreprune.priors.matched import Matched
from coreprune.priors.normlayer import NormLayer
from coreprune.priors.text import Text
from coreprune.priors.zipf import Zipf

VOCABULARY = 40
BLOCKS = {"hidden_size": 16, "intermediate_size": 24, "num_hidden_layers": 1, "num_attention_heads": 2}
SMALL = {"vocab_size": VOCABULARY, "bos_token_id": 1, "eos_token_id": 2, "pad_token_id": 0}


def built(model: str, config: str, **settings: Any) -> nn.Module:
    import transformers

    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        return getattr(transformers, model)(getattr(transformers, config)(**settings)).eval()


def llama(folder: Path | str = "") -> nn.Module:
    model = built("LlamaForCausalLM", "LlamaConfig", **SMALL, **BLOCKS)
    model.config._name_or_path = str(folder)
    return model


def bert(folder: Path | str = "") -> nn.Module:
    model = built("BertModel", "BertConfig", vocab_size=VOCABULARY, **BLOCKS)
    model.config._name_or_path = str(folder)
    return model


def t5(folder: Path | str = "") -> nn.Module:
    sizes = {"d_model": 16, "d_kv": 4, "d_ff": 24, "num_layers": 1, "num_heads": 2, "vocab_size": VOCABULARY}
    model = built("T5ForConditionalGeneration", "T5Config", **sizes, decoder_start_token_id=0)
    model.config._name_or_path = str(folder)
    return model


def tokenizer() -> Any:
    """One token for each letter, which ends with 2 and begins with 1."""
    from tokenizers import Tokenizer, models, pre_tokenizers, processors
    from transformers import PreTrainedTokenizerFast

    known = {"[UNK]": 0, "[CLS]": 1, "[SEP]": 2} | {c: i + 3 for i, c in enumerate("abcdefghijklmnopqrstuvwxyz")}
    made = Tokenizer(models.WordLevel(known, "[UNK]"))
    made.pre_tokenizer = pre_tokenizers.Split("", "isolated")
    made.post_processor = processors.TemplateProcessing(
        single="[CLS] $A [SEP]", special_tokens=[("[CLS]", 1), ("[SEP]", 2)]
    )
    return PreTrainedTokenizerFast(tokenizer_object=made, unk_token="[UNK]", cls_token="[CLS]", sep_token="[SEP]")


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Where a tokenizer lies."""
    tokenizer().save_pretrained(tmp_path)
    return tmp_path


def tokens(*shape: int) -> Tensor:
    return torch.randint(3, VOCABULARY, shape or (2, 7), generator=seeded(0))


def ids(*shape: int) -> dict[str, Any]:
    return {"input_ids": tokens(*shape), "use_cache": False}


def images(width: int = 4) -> nn.Module:
    return nn.Sequential(
        nn.Conv2d(3, width, 3), nn.BatchNorm2d(width), nn.ReLU(), nn.Conv2d(width, width, 3), nn.Flatten()
    ).eval()


# ---------------------------------------------------------------- by itself


def test_a_decoder_reads_the_generic_text_where_its_tokenizer_is_and_writes_its_own_where_not(folder):
    with_one, without = llama(folder), llama()
    assert automatic(with_one, capture(with_one, ids())) == Text(length=picking.WINDOW)
    assert automatic(without, capture(without, ids())) == Generated()


def test_an_encoder_reads_the_generic_text_where_its_tokenizer_is(folder):
    with_one, without = bert(folder), bert()
    assert automatic(with_one, capture(with_one, {"input_ids": tokens()})) == Text()
    assert automatic(without, capture(without, {"input_ids": tokens()})) == Gaussian()


def test_images_are_matched_where_that_is_cheap(monkeypatch):
    model = images()
    small, large = (capture(model, torch.zeros(2, 3, side, side)) for side in (8, 700))
    assert automatic(model, small) == Matched()
    assert automatic(model, large) == Gaussian()


@pytest.mark.parametrize("batch", [1, 2, 8])
def test_what_is_cheap_is_counted_for_each_image(batch, monkeypatch):
    """Two operations for each weight and position, what every node gives, three passes a step; the batch is no matter."""
    model = images()
    captured = capture(model, torch.zeros(batch, 3, 8, 8))
    one = 2 * (4 * 27 * 36 + 4 * 36 * 16) + ENTRY * (3 * 4 * 36 + 2 * 4 * 16)
    cost = 3 * one * Matched().count * Matched().steps
    assert cost < AFFORDABLE
    monkeypatch.setattr(picking, "AFFORDABLE", cost)
    assert automatic(model, captured) == Matched()
    monkeypatch.setattr(picking, "AFFORDABLE", cost - 1)
    assert automatic(model, captured) == Gaussian()


def test_what_cannot_be_counted_is_not_cheap(monkeypatch):
    def fails(*args: Any, **kwargs: Any) -> Any:
        raise NotImplementedError

    monkeypatch.setattr(probes, "run", fails)
    model = images()
    assert automatic(model, capture(model, torch.zeros(2, 3, 8, 8))) == Gaussian()


def test_networks_that_remember_nothing_get_noise():
    layer_norm = nn.Sequential(nn.Linear(4, 8), nn.LayerNorm(8), nn.ReLU(), nn.Linear(8, 3)).eval()
    assert automatic(layer_norm, capture(layer_norm, torch.zeros(2, 4))) == Gaussian()
    forgetful = nn.Sequential(nn.Conv2d(3, 4, 1), nn.BatchNorm2d(4, track_running_stats=False)).eval()
    assert automatic(forgetful, capture(forgetful, torch.zeros(2, 3, 4, 4))) == Gaussian()


class Idle(nn.Module):
    """A BatchNorm that nothing reaches, or that only whole numbers reach."""

    def __init__(self, how: str) -> None:
        super().__init__()
        self.how, self.norm = how, nn.BatchNorm1d(5)
        self.a, self.b = nn.Conv1d(5, 6, 3), nn.Conv1d(6, 3, 1)

    def forward(self, x: Tensor) -> Tensor:
        h = x if self.how == "unused" else self.norm(nn.functional.one_hot(x, 5).float().transpose(1, 2))
        return self.b(self.a(h).relu())


@pytest.mark.parametrize("how", ["unused", "whole numbers"])
def test_where_no_image_comes_to_a_batch_norm_there_is_noise(how):
    model = Idle(how).eval()
    x = torch.zeros(2, 5, 9) if how == "unused" else torch.randint(5, (2, 9), generator=seeded(0))
    assert automatic(model, capture(model, x)) == Gaussian()
    assert cp.prune(model, x, units={"a": 3}).model.a.out_channels == 3


def test_where_text_cannot_stand_for_all_inputs_there_is_noise(folder):
    model = t5(folder)
    pair = {"input_ids": tokens(2, 9), "decoder_input_ids": tokens(2, 7), "use_cache": False}
    assert automatic(model, capture(model, pair)) == Gaussian()
    padded = {"input_ids": tokens(), "attention_mask": (torch.arange(7) < torch.tensor([[7], [4]])).long()}
    assert automatic(bert(folder), capture(bert(folder), padded)) == Gaussian()


def test_why_a_prior_was_picked_is_said_with_it(folder, monkeypatch):
    """Each road to a prior has a reason of its own, and the reason belongs to what was picked."""
    pair = {"input_ids": tokens(2, 9), "decoder_input_ids": tokens(2, 7), "use_cache": False}
    forgetful = nn.Sequential(nn.Conv2d(3, 4, 1), nn.BatchNorm2d(4, track_running_stats=False)).eval()
    image, small = torch.zeros(2, 3, 8, 8), images()
    whole = torch.randint(5, (2, 9), generator=seeded(0))
    cases: list[tuple[nn.Module, Any, type, str]] = [
        (llama(folder), ids(), Text, "a tokenizer lies beside its weights"),
        (llama(), ids(), Generated, "it can write text"),
        (bert(folder), {"input_ids": tokens()}, Text, "a tokenizer lies beside its weights"),
        (bert(), {"input_ids": tokens()}, Gaussian, "writes no text"),
        (t5(folder), pair, Gaussian, "cannot take the place"),
        (small, image, Matched, "its BatchNorms remember"),
        (small, torch.zeros(2, 3, 700, 700), Gaussian, "cheap enough"),
        (forgetful, image, Gaussian, "nothing in the network remembers its inputs"),
        (Idle("whole numbers").eval(), whole, Gaussian, "neither images nor tokens"),
    ]
    for model, example, prior, words in cases:
        captured = capture(model, example)
        found = picked(model, captured)
        assert found.prior == automatic(model, captured) and type(found.prior) is prior
        assert words in found.reason, found.reason
    blocks = replace(capture(small, image), path="0")
    assert picked(small, blocks).prior == Gaussian() and "one by one" in picked(small, blocks).reason


def test_the_recipe_says_why_where_nobody_chose(folder):
    x = torch.zeros(4, 3, 8, 8)
    for prior in (None, "auto"):
        plan = cp.plan(images(), x, units={"0": 2}, prior=prior)
        assert plan.recipe["prior_reason"] == "its BatchNorms remember the mean and the variance of every channel"
    loader = [torch.randn(4, 3, 8, 8, generator=seeded(0))]
    for asked in ({"prior": "matched"}, {"prior": "noise"}, {"prior": Gaussian()}, {"data": loader}):
        assert "prior_reason" not in cp.plan(images(), x, units={"0": 2}, **asked).recipe
    bare = cp.plan(images(), x, units={"0": 2}, method="magnitude")
    assert bare.recipe["prior"].startswith("random inputs") and "weights alone" in bare.recipe["prior_reason"]
    again = cp.plan(images(), x, units={"0": 2}, method="magnitude", reweight=True)
    assert "its BatchNorms remember" in again.recipe["prior_reason"]
    stack = nn.Sequential(nn.Linear(4, 8), nn.ReLU(), nn.Linear(8, 2))
    assert "closed form" in cp.plan(stack, units={"0": 3}).recipe["prior_reason"]
    assert "prior_reason" not in cp.plan(stack, units={"0": 3}, prior=Gaussian(std=0.5)).recipe


def test_what_is_asked_is_what_there_is(folder):
    assert {name: type(make()) for name, make in PRIORS.items()} == {
        "noise": Gaussian, "generated": Generated, "text": Text, "matched": Matched, "zipf": Zipf, "filled": MaskFilled,
        "norm": NormLayer,
    }  # fmt: skip
    x = torch.zeros(4, 3, 8, 8)
    recipes = {
        p: cp.plan(images(), x, units={"0": 2}, prior=p).recipe["prior"] for p in (None, "auto", "noise", "matched")
    }
    assert recipes[None] == recipes["auto"] == recipes["matched"] and "matched to the BatchNorm" in recipes["auto"]
    assert recipes["noise"].startswith("random inputs")
    with pytest.raises(InvalidInputError, match="there are auto, noise, generated, text, matched, zipf, filled, norm"):
        cp.plan(images(), x, units={"0": 2}, prior="images")


@pytest.mark.parametrize("prior", ["generated", "text"])
def test_priors_that_do_not_suit_the_network_are_told(prior):
    with pytest.raises(InvalidInputError, match="give"):
        cp.plan(images(), torch.zeros(4, 3, 8, 8), units={"0": 2}, prior=prior)


# ---------------------------------------------------------------- text in the place of tokens


class Reads(nn.Module):
    """Tokens with a mask, positions, segments and an option."""

    def __init__(self) -> None:
        super().__init__()
        self.table, self.places = nn.Embedding(VOCABULARY, 8), nn.Embedding(30, 8)
        self.a, self.b = nn.Linear(8, 12), nn.Linear(12, 5)

    def forward(
        self, ids: Tensor, mask: Tensor | None = None, places: Tensor | None = None, scale: float = 1.0
    ) -> Tensor:
        h = self.table(ids)
        h = h if places is None else h + self.places(places)
        h = h if mask is None else h * mask[..., None]
        return scale * self.b(self.a(h).relu())


def with_tokens(example: Any, new: Tensor, model: nn.Module | None = None) -> Any:
    return module.with_tokens(capture(model or Reads(), example), new)


@pytest.mark.parametrize("kind", [torch.int64, torch.bool, torch.float32], ids=str)
@pytest.mark.parametrize("value", [0, 1])
def test_masks_and_places_follow_the_tokens(kind, value):
    mask, places = torch.full((2, 7), value).to(kind), torch.arange(7).expand(2, 7)
    new = tokens(5, 11)
    args, kwargs = with_tokens(((tokens(),), {"mask": mask, "places": places, "scale": 2.0}), new)
    assert torch.equal(args[0], new) and kwargs["scale"] == 2.0
    assert torch.equal(kwargs["mask"], torch.full((5, 11), value).to(kind)) and kwargs["mask"].dtype == kind
    assert torch.equal(kwargs["places"], torch.arange(11).expand(5, 11))


def test_what_is_not_as_large_as_the_tokens_stays():
    places = torch.arange(7)
    args, kwargs = with_tokens(((tokens(),), {"places": places}), tokens(5, 7))
    assert args[0].shape == (5, 7) and kwargs["places"] is places


def test_tokens_keep_their_precision():
    _, kwargs = with_tokens({"ids": tokens().int()}, tokens(3, 4))
    assert kwargs["ids"].dtype == torch.int32


@pytest.mark.parametrize(
    "mask",
    [torch.tensor([[1, 1, 1, 1, 1, 1, 0], [1] * 7]), torch.arange(1, 8).expand(2, 7), torch.arange(14).view(2, 7)],
    ids=["padding", "from one", "all differ"],
)
def test_an_input_that_differs_from_token_to_token_is_refused(mask):
    with pytest.raises(
        InvalidInputError, match=r"differs from token to token.*give example_inputs with the tokens alone"
    ):
        with_tokens({"ids": tokens(), "mask": mask}, tokens(5, 11))


def test_networks_that_read_no_tokens_are_told():
    with pytest.raises(InvalidInputError, match="reads no tokens, so that text is no prior"):
        with_tokens(torch.zeros(2, 3, 8, 8), tokens(), images())


def test_an_input_that_goes_with_the_tokens_and_cannot_follow_is_refused():
    class Captions(Reads):
        def forward(self, ids: Tensor, image: Tensor) -> Tensor:
            return super().forward(ids) + image.mean((1, 2))[:, None, None]

    with pytest.raises(InvalidInputError, match=r"an input .*text cannot take their place"):
        with_tokens((tokens(), torch.zeros(2, 4, 4)), tokens(5, 11), Captions())


def test_a_tokenizer_with_more_tokens_than_the_network_is_told():
    class Fewer(Reads):
        def __init__(self) -> None:
            super().__init__()
            self.table = nn.Embedding(20, 8)

    prior = Text(tokenizer=tokenizer(), tokens=128, length=16)
    with pytest.raises(InvalidInputError, match="token"):
        cp.plan(Fewer(), torch.zeros(2, 7, dtype=torch.long), units={"a": 4}, prior=prior)


# ---------------------------------------------------------------- as noise or a loader


def test_noise_and_data_are_settled_already():
    model = images()
    captured = capture(model, torch.zeros(4, 3, 8, 8))
    for prior in (Gaussian(std=2.0), Data([torch.zeros(4, 3, 8, 8)])):
        assert settled(prior, model, captured, 0) == (prior, None)


def test_matched_images_come_in_the_shape_of_the_example():
    model = images()
    captured = capture(model, torch.zeros(4, 3, 8, 8))
    law, example = settled(Matched(count=6, steps=2, together=4), model, captured, 0)
    assert isinstance(law, Drawn) and example is None and not law.data_used and forced(law)
    assert [args[0].shape for args, _ in inputs(captured, law, 0)] == [(4, 3, 8, 8), (2, 3, 8, 8)]
    assert prior_of(law) == f"{Matched(count=6, steps=2).said}, in the dense network"


@pytest.mark.parametrize("prior", [
    Generated(tokens=160, length=8), Text(tokenizer=tokenizer(), tokens=160, length=8),
], ids=["generated", "text"])  # fmt: skip
def test_text_comes_with_an_example_of_its_own_shape(prior):
    model = llama()
    law, example = settled(prior, model, capture(model, ids()), 0)
    assert example[1]["use_cache"] is False
    assert not law.data_used and not forced(law) and law.said == prior.said
    seen = torch.cat([kwargs["input_ids"] for _, kwargs in inputs(capture(model, example), law, 0)])
    expected = prior.draw(model, 0) if isinstance(prior, Generated) else prior.draw(model)
    assert torch.equal(seen, expected)
    shown = example[1]["input_ids"]
    assert len(shown) > 1 and torch.equal(shown, expected[: len(shown)])


def test_the_moments_are_those_of_the_text(folder):
    """The variance of what the reader makes of all tokens of the text, by hand; random tokens have another."""
    torch.manual_seed(0)
    model = Reads().eval()
    prior = Text(tokenizer=tokenizer(), tokens=8192, length=16)
    with torch.no_grad():
        h = model.a(model.table(prior.draw(model))).relu().flatten(0, 1).double()
        expected = float((h @ model.b.weight.double().T).var(0, correction=0).sum())
    for law, near in ((prior, True), ("noise", False)):
        found = cp.plan(model, tokens(), units={"a": 6}, prior=law).cuts[0].evidence["output_variance"]
        assert (abs(found / expected - 1) < 2e-3) == near


def test_where_batch_norms_use_the_statistics_of_what_they_get():
    assert forced(Gaussian()) and forced(Drawn([], False, "x", True))
    assert not forced(Data([])) and not forced(Drawn([], False, "x"))


def own_text(folder: Path) -> Path:
    file = folder / "own.txt"
    file.write_text("all that is written here is read " * 40, encoding="utf-8")
    return file


def test_text_of_the_users_is_data(folder):
    plan = cp.plan(bert(folder), {"input_ids": tokens()}, remove={"*": 0.5}, prior=Text(own_text(folder), length=16))
    assert plan.recipe["data_used"] is True
    plan = cp.plan(bert(folder), {"input_ids": tokens()}, remove={"*": 0.5})
    assert plan.recipe["data_used"] is False and plan.recipe["prior"].startswith("generic text of coreprune")


@pytest.mark.parametrize("example", [(tokens(), torch.ones(2, 7)), (tokens(),)], ids=["two", "one"])
def test_text_of_the_users_goes_to_arguments_by_position_and_is_named(folder, example):
    prior = Text(own_text(folder), tokenizer(), length=16)
    plan = cp.plan(Reads().eval(), example, units={"a": 4}, prior=prior)
    assert plan.recipe["prior"].startswith("measured on text, own.txt")
    assert plan.recipe["data_used"] is True


def test_a_loader_that_can_be_read_once_serves_networks_with_batch_norms():
    batches = [torch.randn(4, 3, 8, 8, generator=seeded(i)) for i in range(3)]
    model = images()
    once, often = (cp.plan(model, batches[0], units={"0": 2}, data=data) for data in (iter(batches), batches))
    assert torch.equal(once.cuts[0].kept, often.cuts[0].kept)
    assert torch.equal(once.cuts[0].coresets[0].mix, often.cuts[0].coresets[0].mix)


def test_layers_in_a_row_take_no_text_and_no_images():
    stack = nn.Sequential(nn.Linear(4, 8), nn.ReLU(), nn.Linear(8, 2))
    for prior in ("text", "generated", "matched"):
        with pytest.raises(InvalidInputError, match=f"prior='{prior}' was asked of a stack"):
            cp.plan(stack, units={"0": 3}, prior=prior)
    assert cp.plan(stack, units={"0": 3}, prior="noise").recipe["prior"].startswith("gaussian")


# ---------------------------------------------------------------- how large images of noise are


def seeing(*head: nn.Module, norm: bool = True) -> nn.Module:
    norms = [nn.BatchNorm2d(6)] if norm else []
    return nn.Sequential(nn.Conv2d(3, 6, 3, 2, 1), *norms, nn.ReLU(), nn.Conv2d(6, 4, 3, 2, 1), *head).eval()


def pooled(size: int) -> list[nn.Module]:
    return [nn.AdaptiveAvgPool2d(size), nn.Flatten(), nn.Linear(4 * size**2, 5)]


HELD = [nn.Flatten(), nn.Linear(4 * 56 * 56, 5)]


@pytest.mark.parametrize(
    "model, side, drawn",
    [
        (seeing(*pooled(1)), 224, 128),
        (seeing(*pooled(1)), 96, 96),  # not large
        (seeing(*pooled(28)), 224, 128),
        (seeing(*pooled(40)), 224, 224),  # as many positions as there would not be
        (seeing(*HELD), 224, 224),  # the size is held
        (nn.Sequential(seeing(), nn.ChannelShuffle(2), *pooled(1)).eval(), 224, 224),  # an operator may hold one
    ],
)
def test_noise_is_drawn_on_half_the_side_where_that_says_as_much(model, side, drawn):
    graph = capture(model, torch.randn(1, 3, side, side))
    batches = list(inputs(graph, Gaussian(), 0))
    again = list(inputs(graph, Gaussian(), 0))
    for ((x,), _), ((y,), _) in zip(batches, again, strict=True):
        assert x.shape[2:] == (drawn, drawn) and torch.equal(x, y)
    assert sum(len(x) for (x,), _ in batches) >= 8


@pytest.mark.parametrize("norm", [True, False])
def test_images_lie_channels_last(norm):
    graph = capture(seeing(*pooled(1), norm=norm), torch.randn(1, 3, 64, 64))
    ((x,), _), *_ = inputs(graph, Gaussian(), 0)
    assert x.is_contiguous(memory_format=torch.channels_last)

"""Mixtures of priors: their moments are the weighted sums, whatever is mixed, and what is said of them is true."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from test_inputs import ids, images, llama, tokenizer
from torch import Tensor, nn

import coreprune as cp
from coreprune.engine import observe
from coreprune.engine.inputs import check_prior, forced, inputs, named, settled
from coreprune.engine.mixture import seed_of, shared
from coreprune.engine.observe import moments
from coreprune.engine.outputs import at_hand, held_out
from coreprune.errors import InvalidInputError
from coreprune.model.capture import capture, rows_of
from coreprune.model.discover import discover
from coreprune.model.tensors import tensors_of
from coreprune.priors.data import Data
from coreprune.priors.gaussian import Gaussian
from coreprune.priors.generated import Generated
from coreprune.priors.matched import Matched
from coreprune.priors.mixture import Mixture
from coreprune.priors.text import Text
from coreprune.priors.zipf import Zipf

VOCABULARY, LENGTH = 40, 16
TEXT = Text(tokenizer=tokenizer(), tokens=1600, length=LENGTH)
ZIPF = Zipf(tokens=1600, length=LENGTH, exponent=1.5)
FEW = Zipf(tokens=400, length=LENGTH)
WRITTEN = Generated(tokens=800, length=LENGTH)


def draws(part: Any, count: int, model: nn.Module, seed: int) -> Tensor:
    """So many sequences of a part, by what the part itself offers."""
    if isinstance(part, Gaussian):
        return torch.randint(VOCABULARY, (count, LENGTH), generator=torch.Generator().manual_seed(seed))
    few = type(part)(**{**vars(part), "tokens": count * LENGTH})
    if isinstance(part, Text):
        return few.draw(model)
    return few.draw(model, VOCABULARY, seed) if isinstance(part, Zipf) else few.draw(model, seed)


def second(rows: Tensor) -> tuple[Tensor, Tensor]:
    """Mean and E hhᵀ."""
    h = rows.reshape(-1, rows.shape[-1]).double()
    return h.mean(0), h.T @ h / len(h)


def seen_at(model: nn.Module, example: Any, prior: Mixture, reader: str) -> tuple[Tensor, Tensor]:
    """The same as the engine measures it at a reader."""
    captured = capture(model, example)
    law, shown = settled(prior, model, captured, 5)
    found = discover(model, example if shown is None else shown, "export")
    taps = next(found.taps[s.name][0] for s in found.sites if s.readers[0].weight.tensor.endswith(reader))
    batches = list(inputs(found.graphs[0], law, 5))
    one = moments(found.graphs, tensors_of(model), [taps], batches, batch_statistics=forced(law))[0]
    return one.mean, one.covariance + torch.outer(one.mean, one.mean)


# ---------------------------------------------------------------- moments


@pytest.mark.parametrize("parts,counts", [
    (((TEXT, 0.5), (WRITTEN, 0.5)), (50, 50)),
    (((TEXT, 3), (FEW, 1)), (75, 25)),
    (((ZIPF, 0.1), (WRITTEN, 0.5), (Gaussian(), 0.4)), (10, 50, 40)),
    (((ZIPF, 0.2), (Zipf(tokens=1600, length=LENGTH, exponent=0.0), 0.8)), (25, 100)),
])  # fmt: skip
def test_moments_are_the_weighted_sum_of_the_parts_moments(parts, counts, monkeypatch):
    """Of what the down projection of a block gets, by hand, part by part."""
    monkeypatch.setattr("coreprune.engine.inputs.TOKENS", 5 * LENGTH)  # so that no sequence is left over
    model = llama()
    got: list[Tensor] = []
    hook = model.model.layers[0].mlp.down_proj.register_forward_pre_hook(lambda module, args: got.append(args[0]))
    total = sum(weight for _, weight in parts)
    mean, square = 0.0, 0.0
    for i, ((part, weight), count) in enumerate(zip(parts, counts, strict=True)):
        rows = draws(part, count, model, seed_of(5, i))
        got.clear()
        with torch.no_grad():
            model(rows)
        m, G = second(got[0])
        mean, square = mean + weight / total * m, square + weight / total * G
    hook.remove()
    found = seen_at(model, ids(), Mixture(parts), "down_proj.weight")
    torch.testing.assert_close(found[0], mean, rtol=1e-4, atol=1e-6)
    torch.testing.assert_close(found[1], square, rtol=1e-4, atol=1e-6)


def plain_images() -> nn.Module:
    """Where the first site's reader comes before the BatchNorm."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        return nn.Sequential(
            nn.Conv2d(3, 6, 3), nn.ReLU(), nn.Conv2d(6, 4, 1), nn.BatchNorm2d(4), nn.ReLU(), nn.Conv2d(4, 2, 1)
        ).eval()


@pytest.mark.parametrize("weights,counts", [((0.5, 0.5), (12, 12)), ((0.75, 0.25), (12, 4)), ((1, 2), (12, 24))])
def test_images_are_mixed_as_tokens_are(weights, counts):
    model, x = plain_images(), torch.zeros(2, 3, 8, 8)
    parts = (Matched(count=12, steps=2, together=5), Gaussian(mean=0.5, std=2.0))
    drawn = [
        torch.cat([args[0] for args, _ in parts[0].draw(model, x, seed_of(5, 0))]),
        torch.cat([a[0] for a, _ in list(probe_noise(model, x, parts[1], counts[1]))])[: counts[1]],
    ]
    mean, square = 0.0, 0.0
    for rows, weight in zip(drawn, weights, strict=True):
        with torch.no_grad():
            m, G = second(model[:2](rows).movedim(1, -1))
        mean, square = mean + weight / sum(weights) * m, square + weight / sum(weights) * G
    found = seen_at(model, x, Mixture(tuple(zip(parts, weights, strict=True))), "2.weight")
    torch.testing.assert_close(found[0], mean, rtol=1e-5, atol=1e-7)
    torch.testing.assert_close(found[1], square, rtol=1e-5, atol=1e-7)


def probe_noise(model: nn.Module, x: Tensor, prior: Gaussian, count: int) -> Any:
    from coreprune.engine.inputs import drawn

    return drawn(capture(model, x), prior, count, seed_of(5, 1), count)


@pytest.mark.parametrize("sizes", [(30, 10), (10, 30), (7, 7, 26), (40,)])
def test_where_not_all_samples_are_taken_each_batch_gives_its_share(monkeypatch, sizes):
    """Batches that hold a number each: the mean says how many samples of each were taken."""
    monkeypatch.setattr(observe, "SAMPLES", 800)
    model = nn.Sequential(nn.Conv2d(1, 2, 1, bias=False), nn.ReLU(), nn.Conv2d(2, 1, 1)).eval()
    with torch.no_grad():
        model[0].weight.fill_(1.0)
    batches = [((torch.full((n, 1, 8, 8), float(i)),), {}) for i, n in enumerate(sizes)]
    found = discover(model, batches[0][0][0], "export")
    one = moments(found.graphs, tensors_of(model), [found.taps["0"][0]], batches)[0]
    assert 0.9 * 800 <= one.count <= 800
    expected = sum(i * n for i, n in enumerate(sizes)) / sum(sizes)
    torch.testing.assert_close(one.mean, torch.full((2,), expected, dtype=torch.float64), rtol=0, atol=2e-3)


# ---------------------------------------------------------------- how many of each


def test_the_part_that_ends_first_says_how_many_there_are():
    assert shared([100, 10], [0.5, 0.5], 1) == [10, 10]
    assert shared([100, 10], [0.9, 0.1], 1) == [90, 10]
    assert shared([None, 10, None], [0.2, 0.5, 0.3], 1) == [4, 10, 6]
    assert shared([None, None], [0.25, 0.75], 8) == [2, 6]
    assert shared([3, None], [0.999, 0.001], 8) == [3, 1]  # one at least
    for n in range(1, 60):
        counts = shared([n, 37], [0.3, 0.7], 1)
        assert counts[0] <= n and counts[1] <= 37
        assert abs(counts[0] / sum(counts) - 0.3) <= 1 / sum(counts)


def test_sequences_are_as_long_as_the_longest_and_come_in_an_order_of_the_seed():
    model = llama()
    mixture = Mixture({Text(tokenizer=tokenizer(), tokens=640, length=8): 1, Zipf(tokens=640, length=20): 1})
    captured = capture(model, ids())
    law, example = settled(mixture, model, captured, 0)
    assert example[1]["input_ids"].shape[1] == 20
    assert torch.equal(law.loader[0][1]["input_ids"], settled(mixture, model, captured, 0)[0].loader[0][1]["input_ids"])
    other = settled(mixture, model, captured, 1)[0].loader[0][1]["input_ids"]
    assert not torch.equal(law.loader[0][1]["input_ids"], other)


def test_two_parts_that_are_alike_draw_different_inputs():
    law = settled(Mixture(((ZIPF, 1), (ZIPF, 1))), llama(), capture(llama(), ids()), 0)[0]
    rows = torch.cat([kwargs["input_ids"] for _, kwargs in law.loader])
    assert len(rows.unique(dim=0)) == len(rows) > 100


def test_your_own_images_go_with_matched_ones_in_calls_of_one_kind():
    model, x = images(), torch.zeros(2, 3, 8, 8)
    own = Data([torch.full((5, 3, 8, 8), 7.0), (torch.full((4, 3, 8, 8), 7.0), torch.zeros(4))])
    law, example = settled(Mixture(((own, 1), (Matched(count=6, steps=1, together=4), 1))), model, capture(model, x), 0)
    kinds = [bool((args[0] == 7.0).all()) for args, _ in law.loader]
    sizes = [rows_of(call) for call in law.loader]
    assert example is None and law.data_used and forced(law)
    assert sum(n for n, k in zip(sizes, kinds, strict=True) if k) == 6
    assert sum(n for n, k in zip(sizes, kinds, strict=True) if not k) == 6
    assert kinds not in (sorted(kinds), sorted(kinds, reverse=True))  # in turn


def test_a_graph_that_holds_its_batch_gets_whole_batches(monkeypatch):
    monkeypatch.setattr("coreprune.engine.mixture.fits", lambda captured, batch: False)
    model, x = images(), torch.zeros(4, 3, 8, 8)
    mixture = Mixture(((Matched(count=9, steps=1), 1), (Gaussian(), 1)))
    law = settled(mixture, model, capture(model, x), 0)[0]
    assert [sum(rows_of(call) for call in law.loader)] == [16]


# ---------------------------------------------------------------- what is said


def test_the_recipe_names_the_parts_and_what_was_drawn_of_each():
    mixture = Mixture({TEXT: 0.5, WRITTEN: 0.5})
    made = cp.plan(llama(), ids(), remove={"*": 0.5}, prior=mixture)
    assert made.recipe["prior"] == (
        "mixture of 0.5 generic text of coreprune, written by SmolLM2-135M-Instruct (at most 800 tokens) and 0.5 text "
        "that the model sampled itself (800 tokens, temperature 1), in the dense network"
    )
    assert made.recipe["data_used"] is False


def test_a_mixture_uses_data_where_a_part_does(tmp_path: Path):
    file = tmp_path / "own.txt"
    file.write_text("some words that somebody wrote\n" * 60)
    own = Text(file, tokenizer=tokenizer(), tokens=640, length=8)
    assert Mixture({own: 0.1, ZIPF: 0.9}).data_used and not Mixture({TEXT: 1, Gaussian(): 1}).data_used
    assert Mixture(((Data([]), 1), (Gaussian(), 1))).data_used
    made = cp.plan(llama(), ids(), remove={"*": 0.5}, prior=Mixture({own: 0.1, ZIPF: 0.9}))
    assert made.recipe["data_used"] is True


def test_names_with_a_plus_are_equal_shares():
    mixture = named("text+zipf+noise")
    assert mixture == Mixture(((Text(), 1.0), (Zipf(), 1.0), (Gaussian(), 1.0)))
    assert [weight for _, weight in mixture.weighed] == [1 / 3] * 3
    assert named("zipf") == Zipf() and named(ZIPF) is ZIPF
    made = cp.plan(llama(), ids(), remove={"*": 0.5}, prior="zipf+noise")
    assert made.recipe["prior"].startswith("mixture of 0.5 random tokens by Zipf's law (32,")
    for wrong in ("text+", "text+images", "auto+text", "+", "text generated"):
        with pytest.raises(InvalidInputError, match="there are auto, noise"):
            check_prior(wrong)


# ---------------------------------------------------------------- measuring


def test_what_a_cut_does_is_measured_on_other_inputs_of_all_parts():
    model = llama()
    captured = capture(model, ids())
    mixture = Mixture({TEXT: 0.75, ZIPF: 0.25})
    held = held_out(mixture, model, captured, 0)
    rows = torch.cat([kwargs["input_ids"] for _, kwargs in held.calls])
    drawn = torch.cat([kwargs["input_ids"] for _, kwargs in settled(mixture, model, captured, 0)[0].loader])
    assert held.unseen and not set(map(tuple, rows.tolist())) & set(map(tuple, drawn.tolist()))
    text = torch.cat([TEXT.draw(model), TEXT.held_out(model, 10**6)[0]]).tolist()
    share = sum(row in text for row in rows.tolist()) / len(rows)
    assert abs(share - 0.75) < 0.01
    assert "held-out tokens of generic text and some of" in held.said


def test_it_is_at_hand_where_all_parts_are():
    captured = capture(llama(), ids())
    assert at_hand(Mixture({TEXT: 1, ZIPF: 1}), captured)
    assert not at_hand(Mixture({TEXT: 1, WRITTEN: 1}), captured)


def test_a_smaller_network_is_trained_on_a_mixture():
    model = llama()
    small = cp.prune(model, ids(), remove={"*": 0.5}, prior=ZIPF)
    trained = cp.distill(small, model, steps=3, batch=2, prior=Mixture({ZIPF: 1, TEXT: 1}))
    said = trained.plan.recipe["distilled"]["prior"]
    assert "mixture of 0.5 random tokens by Zipf's law (1,600 tokens" in said


# ---------------------------------------------------------------- refusals


@pytest.mark.parametrize("parts,told", [
    ({}, "give priors with their weights"),
    ([ZIPF, TEXT], "give priors with their weights"),
    ({"text": 1}, "'text' was given as part of a mixture"),
    ({Mixture(((ZIPF, 1),)): 1}, "as part of a mixture"),
    ({ZIPF: 0}, "a weight of 0 was given"),
    ({ZIPF: -1}, "a weight of -1"),
    ({ZIPF: float("nan")}, "a weight of nan"),
    ({ZIPF: float("inf")}, "a weight of inf"),
    ({ZIPF: "half"}, "a weight of 'half'"),
    ({TEXT: 1, Matched(): 1}, "Text and Matched were given in one mixture"),
    (((Data([]), 1), (ZIPF, 1)), "Zipf and Data were given in one mixture"),
], ids=str)  # fmt: skip
def test_what_is_no_mixture_is_told(parts, told):
    with pytest.raises(InvalidInputError, match=told):
        cp.plan(llama(), ids(), remove={"*": 0.5}, prior=Mixture(parts))


def test_what_is_no_law_of_inputs_is_no_part():
    with pytest.raises(InvalidInputError, match=r"NormLayer\(.*\) was given as part of a mixture"):
        check_prior("text+norm")


def test_parts_that_do_not_suit_the_network_are_told():
    with pytest.raises(InvalidInputError, match="no tokens"):
        cp.plan(images(), torch.zeros(4, 3, 8, 8), units={"0": 2}, prior=Mixture({ZIPF: 1, Gaussian(): 1}))
    with pytest.raises(InvalidInputError, match="no BatchNorm with running statistics"):
        cp.plan(llama(), ids(), remove={"*": 0.5}, prior="matched+noise")

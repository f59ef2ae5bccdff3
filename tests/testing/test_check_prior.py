"""Our priors pass the check that is shipped, and one that is wrong in any one way does not."""

from __future__ import annotations

import subprocess
import sys
from dataclasses import dataclass, field
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from helpers import seeded
from torch import Tensor, nn

import coreprune as cp
from coreprune.engine.inputs import PRIORS
from coreprune.errors import InvalidInputError
from coreprune.priors.data import Drawn
from coreprune.testing import ConformanceError, check_prior

X = torch.randn(2, 3, 8, 8, generator=seeded(0))


def images() -> nn.Module:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        return nn.Sequential(nn.Conv2d(3, 6, 3), nn.BatchNorm2d(6), nn.ReLU(), nn.Conv2d(6, 2, 3)).eval()


def language() -> nn.Module:
    import transformers

    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        return transformers.LlamaForCausalLM(
            transformers.LlamaConfig(
                vocab_size=40, bos_token_id=1, eos_token_id=2, hidden_size=16, intermediate_size=24, num_hidden_layers=1,
                num_attention_heads=2, use_cache=False,
            )
        ).eval()  # fmt: skip


def encoder() -> nn.Module:
    import transformers

    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        return transformers.BertForMaskedLM(
            transformers.BertConfig(
                vocab_size=40, hidden_size=16, intermediate_size=24, num_hidden_layers=1, num_attention_heads=2,
                mask_token_id=3,
            )
        ).eval()  # fmt: skip


def tokenizer() -> Any:
    """Letters to numbers from 3 on."""

    def one(text: str) -> list[int]:
        return [3 + ord(c) % 30 for c in text.lower() if c.isalpha()]

    def cut(text: str | list[str], **how: Any) -> dict[str, Any]:
        return {"input_ids": one(text) if isinstance(text, str) else [one(line) for line in text]}

    return cut


def ours() -> dict[str, tuple[Any, nn.Module, Any]]:
    tokens = {"input_ids": torch.randint(40, (2, 6), generator=seeded(1))}
    return {
        "noise": (cp.Gaussian(), images(), X),
        "matched": (cp.Matched(count=4, steps=3, together=4), images(), X),
        "generated": (cp.Generated(tokens=96, length=12), language(), tokens),
        "filled": (cp.MaskFilled(tokens=96, length=12, sweeps=1), encoder(), tokens),
        "norm": (cp.NormLayer(samples=100), language(), tokens),
        "zipf": (cp.Zipf(tokens=120, length=12), language(), tokens),
        "text": (cp.Text(tokens=640, length=10, tokenizer=tokenizer()), language(), tokens),
    }


@pytest.mark.parametrize("name", list(PRIORS))
def test_ours_pass(name):
    prior, model, example = ours()[name]
    assert isinstance(prior, PRIORS[name])
    found = check_prior(prior, model, example)
    assert "says that it uses no data, and opened none" in found.checked
    assert ("different from seed to seed" in found.checked) == (name != "text")
    assert ("survives JSON" in found.checked) == (name == "noise")


def test_text_that_starts_with_openings_passes_and_with_lines_of_ones_own_is_data():
    _, model, example = ours()["generated"]
    for starts, told in (
        ("openings", "says that it uses no data, and opened none"),
        (["ab", "cde"], "says that it uses data"),
    ):
        prior = cp.Generated(tokens=96, length=12, starts=starts, temperature=(0.8, 1.2), tokenizer=tokenizer())
        assert told in check_prior(prior, model, example).checked


@pytest.mark.parametrize("parts", [("zipf", "text"), ("text", "noise"), ("generated", "zipf"), ("matched", "noise")])
def test_mixtures_pass(parts):
    (one, model, example), (other, _, _) = (ours()[name] for name in parts)
    found = check_prior(cp.Mixture({one: 0.75, other: 0.25}), model, example)
    assert {"says that it uses no data, and opened none", "different from seed to seed"} <= set(found.checked)


def test_data_and_a_file_of_text_pass_and_say_that_they_are_data(tmp_path):
    file = tmp_path / "own.txt"
    file.write_text("some words that somebody wrote\n" * 60)
    text = cp.Text(file, tokenizer=tokenizer(), tokens=640, length=10)
    for prior, model, example in (
        (cp.Data([torch.randn(4, 3, 8, 8, generator=seeded(2)), (X, torch.zeros(2))]), images(), X),
        (text, language(), ours()["text"][2]),
    ):
        assert "says that it uses data" in check_prior(prior, model, example).checked


def test_noise_with_numbers_of_its_own_survives_json():
    assert "survives JSON" in check_prior(cp.Gaussian(mean=0.25, std=0.5, scales=(1.0, 2.0)), images(), X).checked


# ---------------------------------------------------------------- priors that are wrong


@dataclass(frozen=True)
class Waves(cp.Data):
    """Images that are drawn from a seed: no data. The rows below spoil one thing each."""

    loader: Any = ()
    seed: int = 0
    change: Any = None
    told: bool = False
    words: str = "waves"
    extra: Any = None
    seen: list = field(default_factory=list, compare=False)

    @property
    def data_used(self) -> bool:
        return self.told

    @property
    def said(self) -> str:
        return self.words

    def calls(self):
        if self.extra is not None:
            self.extra()
        x = torch.randn(4, 3, 8, 8, generator=seeded(self.seed))
        yield (x if self.change is None else self.change(x),), {}


def test_a_prior_of_ones_own_passes():
    found = check_prior(lambda seed: Waves(seed=seed), images(), X)
    assert found.checked[-1] == "says that it uses no data, and opened none"


def nan(x: Tensor) -> Tensor:
    x[0, 0, 0, 0] = torch.nan
    return x


WRONG = {
    "NaN": (lambda seed: Waves(seed=seed, change=nan), "NaN or infinite values"),
    "too large": (lambda seed: Waves(seed=seed, change=lambda x: 3e38 * x.sign()), "NaN or infinite outputs"),
    "another dtype": (lambda seed: Waves(seed=seed, change=torch.Tensor.double), "float64 for torch.float32"),
    "another size": (lambda seed: Waves(seed=seed, change=lambda x: x[..., :7, :7]), "shape"),
    "the global generator": (
        lambda seed: Waves(seed=seed, change=lambda x: x + torch.randn(())),
        "global random state",
    ),
    "no seed at all": (lambda seed: Waves(), "two seeds gave the same"),
    "no words": (lambda seed: Waves(seed=seed, words=""), "says ''"),
    "two lines": (lambda seed: Waves(seed=seed, words="a\nb"), "says"),
    "an exception": (lambda seed: Waves(seed=seed, extra=lambda: 1 / 0), "raised ZeroDivisionError"),
    "no answer about data": (lambda seed: Waves(seed=seed, told=None), "data_used is None"),
}


@pytest.mark.parametrize("name", WRONG)
def test_each_mistake_is_caught(name):
    prior, message = WRONG[name]
    with pytest.raises(ConformanceError, match=message) as caught:
        check_prior(prior, images(), X)
    assert str(caught.value).startswith("prior Waves: ")


def test_another_result_every_time_is_caught():
    count = iter(range(100))
    with pytest.raises(ConformanceError, match="one seed gave two sets"):
        check_prior(lambda seed: Waves(seed=seed, change=lambda x: x + next(count)), images(), X)


def test_inputs_that_no_seed_changes_are_data():
    with pytest.raises(ConformanceError, match="the same for every seed, as those of a loader"):
        check_prior(Waves(), images(), X)
    assert "says that it uses data" in check_prior(Waves(told=True), images(), X).checked


def test_a_file_that_is_read_in_silence_is_caught(tmp_path):
    file = tmp_path / "private.csv"
    file.write_text("1,2\n")
    with pytest.raises(ConformanceError, match=r"data_used is False, but it read .*private\.csv"):
        check_prior(lambda seed: Waves(seed=seed, extra=file.read_text), images(), X)
    check_prior(lambda seed: Waves(seed=seed, told=True, extra=file.read_text), images(), X)


def test_a_model_that_is_changed_is_caught():
    model = images()
    with pytest.raises(ConformanceError, match="changed the model"):
        check_prior(lambda seed: Waves(seed=seed, extra=lambda: model[0].weight.data.mul_(2)), model, X)
    with pytest.raises(ConformanceError, match="changed the model"):
        check_prior(lambda seed: Waves(seed=seed, extra=model.train), model.eval(), X)


def test_numbers_that_do_not_come_back_are_caught():
    @dataclass(frozen=True)
    class Forgets(cp.Gaussian):
        @classmethod
        def from_json(cls, data):
            return cls(data["mean"], data["std"])

    with pytest.raises(ConformanceError, match="come back as others"):
        check_prior(Forgets(scales=(1.0, 2.0)), images(), X)

    @dataclass(frozen=True)
    class Holds(cp.Gaussian):
        def to_json(self):
            return {**super().to_json(), "tensor": torch.zeros(1)}

    with pytest.raises(ConformanceError, match="to_json and back raised TypeError"):
        check_prior(Holds(), images(), X)


def test_what_plan_does_not_take_is_said():
    with pytest.raises(ConformanceError, match=r"coreprune\.plan does not take it"):
        check_prior(SimpleNamespace(calls=list), images(), X)


def test_what_the_prior_refuses_is_the_users_to_mend():
    with pytest.raises(InvalidInputError, match="no BatchNorm"):
        check_prior(cp.Matched(), nn.Sequential(nn.Conv2d(3, 4, 3), nn.ReLU(), nn.Conv2d(4, 2, 3)), X)


def test_a_drawn_loader_tells_the_truth_about_itself():
    calls = [((X,), {})]
    assert "says that it uses data" in check_prior(Drawn(calls, False, "theirs", given=True), images(), X).checked
    with pytest.raises(ConformanceError, match="same for every seed"):
        check_prior(Drawn(calls, False, "none"), images(), X)


def test_the_kit_needs_no_test_runner_and_nothing_needs_the_kit():
    code = (
        "import sys, coreprune, coreprune.cli.main; assert 'coreprune.testing' not in sys.modules; "
        "import coreprune.testing; assert not {'pytest', '_pytest', 'hypothesis'} & set(sys.modules)"
    )
    subprocess.run([sys.executable, "-c", code], check=True)

"""The networks of `benchmarks/language.py`, and every row of its tables as a value that is measured on demand."""

from __future__ import annotations

import hashlib
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property, partial
from pathlib import Path
from typing import Any

import torch
from safetensors import safe_open
from safetensors.torch import save_file
from torch import Tensor, nn
from torch.nn.functional import cosine_similarity

import coreprune as cp
from baselines import METHODS
from baselines.cutting import carried_out, chosen, see, units_of
from baselines.flap import allocated, fluctuation
from baselines.slicegpt import parameters_of, slicegpt, width_for
from baselines.units import Seen, Units, pooled
from baselines.wanda import scores
from coreprune.budget import widths as widths_for
from coreprune.model.site import Inspection, Site, parameters_after
from coreprune.model.tensors import tensors_of
from networks import CACHE, minilm, smollm2
from texts import ADVENTURE, NEWS, WINDOW, brown, calibration, embedded, genre, of_one_length, perplexity, sentences

__all__ = ["DENSE", "NETWORKS", "OWN", "About", "Bench", "Case", "Made", "cases", "minilm_bench", "smollm2_bench"]

DENSE, OWN = "dense", "own widths"
SENTENCES, SEEDS = 500, (0, 1, 2)
#: tokens of one pass of observing, which takes all of them in
PASS = 16_384
#: methods that share out one threshold over all layers → what they rank units by
SHARED: dict[str, Callable[[Units], Tensor]] = {"FLAP": fluctuation, "Wanda-sp": scores}
SLICED, ASIDE = "SliceGPT", "SliceGPT, embeddings aside"


@dataclass(frozen=True)
class About:
    """A network before it is loaded.

    Attributes:
        fractions: shares of the units of every FFN that go; "own widths" has the parameters of the first.
        amounts: tokens of calibration text, most first.
        figure: what is measured, in words. form: format of one. kind: of its FFNs' sites.
        load: from the folder of data.
    """

    fractions: tuple[float, ...]
    amounts: tuple[int, ...]
    figure: str
    form: str
    kind: str
    load: Callable[[Path], Bench]

    @property
    def language(self) -> bool:
        """Whether it is a language model of the Llama kind, which has more rows."""
        return self.kind == "gated"


@dataclass(frozen=True)
class Bench:
    """A network and how it is judged.

    Attributes:
        name: of the network. about: what is known without it.
        model: the network. batches: calibration text.
        measure: the figure of a network. study: the same on what settings may be chosen on, if there is any.
        more: further arguments of a call.
    """

    name: str
    about: About
    model: Any
    batches: Sequence[Tensor]
    measure: Callable[[nn.Module], float]
    study: Callable[[nn.Module], float] | None
    more: Mapping[str, Any]

    @cached_property
    def found(self) -> Inspection:
        """The sites, seen on calls as long as the calibration text."""
        return cp.inspect(self.model, self.call(torch.zeros_like(self.batches[0])))

    @cached_property
    def tensors(self) -> Mapping[str, Tensor]:
        """By name."""
        return tensors_of(self.model)

    @property
    def sites(self) -> list[Site]:
        """The FFNs."""
        return [site for site in self.found.sites if site.kind == self.about.kind]

    @property
    def example(self) -> dict[str, Any]:
        """A short call."""
        return self.call(torch.zeros(2, 16, dtype=torch.long))

    def call(self, ids: Tensor) -> dict[str, Any]:
        """The arguments of a call."""
        return {"input_ids": ids, **self.more}

    def text(self, tokens: int) -> list[Tensor]:
        """The first so many tokens of calibration text."""
        return list(self.batches[: tokens // self.batches[0].numel()])

    def calls(self, tokens: int) -> list[dict[str, Any]]:
        """The same as calls."""
        return [self.call(ids) for ids in self.text(tokens)]

    @cached_property
    def _seen(self) -> dict[int, tuple[dict[str, tuple[Seen, ...]], float]]:
        return {}

    def seen(self, tokens: int) -> tuple[dict[str, tuple[Seen, ...]], float]:
        """Moments of the FFNs' units in the dense network by site, and the seconds that they took."""
        if tokens not in self._seen:
            self._seen[tokens] = kept_moments(self, tokens)
        return self._seen[tokens]

    def observed(self, tokens: int) -> tuple[dict[str, tuple[Seen, ...]], float]:
        """The same, measured."""
        start, calls = time.process_time(), self.calls(tokens)
        step = max(1, PASS // self.batches[0].numel())
        parts = [see(self.model, self.found, self.sites, calls[at : at + step]) for at in range(0, len(calls), step)]
        moments = {
            name: tuple(pooled(readers) for readers in zip(*(part[name] for part in parts), strict=True))
            for name in parts[0]
        }
        return moments, time.process_time() - start

    def widths(self, fraction: float) -> dict[str, int]:
        """Units to keep when every FFN loses the same share."""
        return widths_for(self.found, remove={"*": fraction}, kinds=(self.about.kind,))

    def parameters(self, kept: Mapping[str, int]) -> int:
        """Numbers of the network with these widths, what is shared counted once."""
        return parameters_after(self.found.distinct, self.found.sites, kept)


@dataclass(frozen=True)
class Made:
    """A cut network, and what is said of it."""

    network: Any
    parameters: int
    source: str
    data_used: bool
    compared: bool
    seconds: float


@dataclass(frozen=True)
class Case:
    """One row: a method at one cut.

    Attributes:
        network: its name. part: "baselines", "slicegpt" or "coreprune". method, cut: labels.
        make: (bench, seed) → cut network. tokens: of calibration text, 0 without. seeds: of a random method.
    """

    network: str
    part: str
    method: str
    cut: str
    make: Callable[[Bench, int], Made]
    tokens: int = 0
    seeds: tuple[int, ...] = (0,)

    @property
    def key(self) -> tuple[str, str, str, int]:
        """What tells rows apart."""
        return self.network, self.method, self.cut, self.tokens


def kept_moments(bench: Bench, tokens: int) -> tuple[dict[str, tuple[Seen, ...]], float]:
    """What `Bench.observed` gives, from benchmarks/cache where it was measured before on the same text."""
    text = hashlib.sha256(b"".join(ids.numpy().tobytes() for ids in bench.text(tokens))).hexdigest()[:12]
    file = CACHE / f"moments-{bench.name}-{tokens}-{text}.safetensors"
    if file.exists():
        with safe_open(file, "pt") as stored:
            about, names = stored.metadata(), stored.keys()
            tensors = {name: stored.get_tensor(name) for name in names}
        count = int(about["count"])
        found = {
            site.name: tuple(
                Seen(tensors[f"{site.name}.{r}.mean"], tensors[f"{site.name}.{r}.covariance"], count)
                for r in range(len(site.readers))
            )
            for site in bench.sites
        }
        return found, float(about["seconds"])
    found, seconds = bench.observed(tokens)
    parts = {f"{name}.{r}": one for name, readers in found.items() for r, one in enumerate(readers)}
    tensors = {f"{name}.mean": one.mean.contiguous() for name, one in parts.items()}
    tensors |= {f"{name}.covariance": one.covariance.contiguous() for name, one in parts.items()}
    CACHE.mkdir(exist_ok=True)
    count = next(iter(parts.values())).count
    save_file(tensors, file, {"seconds": str(seconds), "count": str(count)})
    return found, seconds


# ---------------------------------------------------------------------------------------------- how rows are made


def dense(bench: Bench, seed: int) -> Made:
    """The network as it is."""
    return Made(bench.model, bench.parameters({}), "", False, False, 0.0)


def by_baseline(bench: Bench, seed: int, *, label: str, fraction: float, tokens: int, own: bool = False) -> Made:
    """By a published method, at one share for all FFNs or at its own widths; the seconds count the calibration pass."""
    method = METHODS[label]
    seen, passed = bench.seen(tokens) if tokens else ({}, 0.0)
    start, kept, source = time.process_time(), bench.widths(fraction), method.source
    if own:
        ranked = {
            site.name: SHARED[label](units_of(site, bench.found, bench.tensors, seen[site.name]))
            for site in bench.sites
        }
        kept = allocated(ranked, bench.parameters, bench.parameters(kept))
        source = source.split(", one fraction")[0] + ", one threshold for all layers"
    choices = chosen(_quick(label), bench.found, bench.tensors, kept, seen=seen, seed=seed)
    recipe = {"method": label, "data_used": method.data, "prior": method.source}
    carried = carried_out(bench.model, bench.found, choices, bench.example, recipe)
    seconds = passed + time.process_time() - start
    return Made(carried.small.model, carried.small.parameters, source, method.data, carried.compared, seconds)


def _quick(label: str) -> Callable[..., Any]:
    """The method; k-means from one start of its own, as from ten it takes an hour for a language model."""
    choose = METHODS[label].choose
    return partial(choose, starts=1) if label.startswith("folding") else choose


def by_slicegpt(bench: Bench, seed: int, *, fraction: float, tokens: int, aside: bool) -> Made:
    """SliceGPT at the parameters of the cut: all of them, or those of the blocks."""
    start = time.process_time()
    limit = bench.parameters(bench.widths(fraction))
    if aside:
        whole = parameters_of(bench.model, 1, blocks=True) - 2 * len(bench.model.model.layers)
        limit += whole * bench.model.config.hidden_size - bench.parameters({})
    k = width_for(bench.model, limit, blocks=aside)
    small = slicegpt(bench.model, k, bench.text(tokens))
    source = f"Ashkboos et al. 2024, arXiv:2401.15024: {k} of {bench.model.config.hidden_size} coordinates"
    count = sum(one.numel() for one in small.parameters())
    return Made(small, count, source, True, False, time.process_time() - start)


def by_coreprune(bench: Bench, seed: int, *, fraction: float, own: bool = False, tokens: int = 0, **asked: Any) -> Made:
    """By `coreprune.prune`: one width for all FFNs, or the same number of parameters shared out by itself."""
    asked |= {"remove": {"*": fraction}, "uniform": "config"}
    if own:
        less = 1 - bench.parameters(bench.widths(fraction)) / bench.parameters({})
        asked |= {"remove": less, "uniform": False}
    example = bench.example
    if tokens:
        asked["data"], example = bench.calls(tokens), bench.call(torch.zeros_like(bench.batches[0]))
    start = time.process_time()
    small = cp.prune(bench.model, example, kinds=[bench.about.kind], seed=seed, **asked)
    seconds = time.process_time() - start
    recipe = small.plan.recipe
    return Made(small.model, small.parameters, recipe["prior"], recipe["data_used"], True, seconds)


# ---------------------------------------------------------------------------------------------- all rows


#: label → arguments of `coreprune.prune` without data
OURS: dict[str, dict[str, Any]] = {
    "coreprune": {},
    "coreprune, refined": {"method": "refined"},
    "coreprune, refined, own text too": {
        "method": "refined",
        "prior": cp.Mixture({cp.Text(length=128): 1, cp.Generated(tokens=65_536, starts="openings"): 1}),
    },
    "coreprune, own text": {"prior": "generated"},
    "coreprune, generic text, 8,192 tokens": {"prior": cp.Text(tokens=8192, length=128)},
    "coreprune, generic text, 32,768 tokens": {"prior": cp.Text(tokens=32_768, length=128)},
    "coreprune, noise": {"prior": "noise"},
}
OURS_DATA = "coreprune, real text"
#: those of them that networks have that write no text
ENCODERS = ("coreprune", "coreprune, refined", "coreprune, noise")
#: what takes longest, and comes last
SLOW = ("PCA slicing", "GRAIL, greedy", "folding")


def cases(name: str, about: About) -> list[Case]:
    """The rows of a network, in the order in which they are measured."""
    found = [Case(name, "baselines", DENSE, "nothing", dense)]
    first = about.fractions[0]
    for label, method in METHODS.items():
        for tokens in about.amounts if method.data else (0,):
            arguments = {"label": label, "tokens": tokens}
            seeds = SEEDS if label == "uniform" else (0,)
            for fraction in about.fractions:
                make = partial(by_baseline, fraction=fraction, **arguments)
                found.append(Case(name, "baselines", label, f"−{fraction:.0%}", make, tokens, seeds))
            if about.language and label in SHARED:
                make = partial(by_baseline, fraction=first, own=True, **arguments)
                found.append(Case(name, "baselines", label, OWN, make, tokens))
    most = about.amounts[0]
    found.sort(key=lambda case: (_late(case.method), case.method != DENSE, 0 < case.tokens < most))
    if about.language:
        found += _slices(name, about)
    for label, asked in {**OURS, OURS_DATA: {}}.items():
        if not about.language and label not in (*ENCODERS, OURS_DATA):
            continue
        for tokens in about.amounts if label == OURS_DATA else (0,):
            for fraction in about.fractions:
                make = partial(by_coreprune, fraction=fraction, tokens=tokens, **asked)
                found.append(Case(name, "coreprune", label, f"−{fraction:.0%}", make, tokens))
            if about.language:
                make = partial(by_coreprune, fraction=first, tokens=tokens, own=True, **asked)
                found.append(Case(name, "coreprune", label, OWN, make, tokens))
    return found


def _late(method: str) -> int:
    """0, or the place among those that take longest."""
    return next((i + 1 for i, start in enumerate(SLOW) if method.startswith(start)), 0)


def _slices(name: str, about: About) -> list[Case]:
    """SliceGPT with the head that it unties counted, and without embedding and head."""
    found = []
    for tokens in about.amounts:
        for label in (SLICED, ASIDE):
            for fraction in about.fractions:
                make = partial(by_slicegpt, fraction=fraction, tokens=tokens, aside=label == ASIDE)
                found.append(Case(name, "slicegpt", label, f"−{fraction:.0%}", make, tokens))
    return found


# ---------------------------------------------------------------------------------------------- the networks


def smollm2_bench(data: Path) -> Bench:
    """SmolLM2: perplexity of the first 8,192 tokens of news."""
    from transformers import AutoModelForCausalLM, AutoTokenizer

    tokenizer, texts = AutoTokenizer.from_pretrained(smollm2()), brown(data)
    model = AutoModelForCausalLM.from_pretrained(smollm2(), dtype=torch.float32).eval()
    news, adventure = genre(tokenizer, texts, NEWS), genre(tokenizer, texts, ADVENTURE)
    about = NETWORKS["smollm2"]
    return Bench(
        "smollm2",
        about,
        model,
        calibration(tokenizer, texts, about.amounts[0] // WINDOW).split(2),
        lambda network: perplexity(network, news),
        lambda network: perplexity(network, adventure),
        {"use_cache": False},
    )


def minilm_bench(data: Path) -> Bench:
    """MiniLM: mean cosine of mean-pooled embeddings of news sentences with the dense network's."""
    from transformers import AutoModel, AutoTokenizer

    tokenizer, model = AutoTokenizer.from_pretrained(minilm()), AutoModel.from_pretrained(minilm()).eval()
    texts = brown(data)
    news = [tokenizer(line, return_tensors="pt")["input_ids"] for line in sentences(texts, SENTENCES, news=True)]
    before = embedded(model, news)
    batches = [one["input_ids"] for one in of_one_length(tokenizer, sentences(texts, 4000, news=False), 1024)]
    return Bench(
        "minilm",
        NETWORKS["minilm"],
        model,
        batches,
        lambda network: float(cosine_similarity(before, embedded(network, news)).mean()),
        None,
        {},
    )


COSINE = f"mean cosine with the dense embeddings, {SENTENCES} sentences of news"
#: a new network is one row
NETWORKS: dict[str, About] = {
    "smollm2": About((0.2, 0.3), (28_672, 8_192), "perplexity on 8,192 tokens of news", ".1f", "gated", smollm2_bench),
    "minilm": About((0.25, 0.5), (24_576,), COSINE, ".3f", "linear", minilm_bench),
}

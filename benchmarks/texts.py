"""Text of the Brown corpus for the benchmarks, and the perplexity of a language model on it."""

from __future__ import annotations

import gzip
import re
from collections.abc import Collection, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy

__all__ = [
    "ADVENTURE",
    "LENGTH",
    "NEWS",
    "WINDOW",
    "WINDOWS",
    "brown",
    "calibration",
    "embedded",
    "genre",
    "of_one_length",
    "perplexity",
    "sentences",
]

#: tokens of a window, windows that are measured on, tokens of a sentence
WINDOW, WINDOWS, LENGTH = 512, 16, 24
#: what is measured on, and what settings may be chosen on: the corpus's names begin so
NEWS, ADVENTURE = "ca", "cn"


def brown(data: Path) -> dict[str, str]:
    """The texts of the Brown corpus by their names, ca01 … cr09."""
    raw = gzip.decompress((data / "text" / "brown.txt.gz").read_bytes()).decode()
    parts = re.split(r"^### (\w+)\n", raw, flags=re.M)[1:]
    return dict(zip(parts[::2], parts[1::2], strict=True))


def sentences(texts: Mapping[str, str], count: int, *, news: bool) -> list[str]:
    """Sentences of at least five words, evenly from all texts that are news, or that are not."""
    found = [
        part.strip()
        for name, text in texts.items()
        if name.startswith(NEWS) == news
        for line in text.splitlines()
        for part in line.split(". ")
        if len(part.split()) >= 5
    ]
    return found[:: len(found) // count][:count]


def of_one_length(tokenizer: Any, lines: list[str], count: int) -> list[dict[str, Tensor]]:
    """Sentences of LENGTH tokens or more, cut to LENGTH, so that none is padded."""
    ids = [tokenizer(line, truncation=True, max_length=LENGTH)["input_ids"] for line in lines]
    whole = torch.tensor([one for one in ids if len(one) == LENGTH][:count])
    return [{"input_ids": part} for part in whole.split(32) if len(part) == 32]


def genre(tokenizer: Any, texts: Mapping[str, str], name: str) -> Tensor:
    """The first WINDOWS windows of a genre, (WINDOWS, WINDOW): "ca" is news."""
    text = "".join(text for one, text in texts.items() if one.startswith(name))[:60_000]
    return torch.tensor(tokenizer(text)["input_ids"][: WINDOW * WINDOWS]).view(WINDOWS, WINDOW)


def calibration(
    tokenizer: Any, texts: Mapping[str, str], count: int, without: Collection[str] = (NEWS, ADVENTURE)
) -> Tensor:
    """The first WINDOW tokens of `count` texts, evenly from all genres but some, (count, WINDOW).

    Their order is by the golden ratio, so that the first of them are even too.
    """
    others = [text for name, text in texts.items() if not name.startswith(tuple(without))]
    order = sorted(range(count), key=lambda i: (i * (5**0.5 - 1) / 2) % 1)
    chosen = [others[i * len(others) // count] for i in order]
    return torch.tensor([tokenizer(text)["input_ids"][:WINDOW] for text in chosen])


def perplexity(network: nn.Module, windows: Tensor) -> float:
    """Exp of the mean loss of every token but a window's first."""
    total = 0.0
    with torch.inference_mode():
        for x in windows.split(2):
            scores = network(input_ids=x, use_cache=False).logits[:, :-1]
            total += float(cross_entropy(scores.flatten(0, 1), x[:, 1:].flatten(), reduction="sum"))
    return float(torch.tensor(total / (len(windows) * (windows.shape[1] - 1))).exp())


def embedded(network: nn.Module, texts: Sequence[Tensor]) -> Tensor:
    """Mean-pooled embeddings of texts, (N, width), one by one, so that nothing is padded."""
    with torch.inference_mode():
        return torch.cat([network(input_ids=ids).last_hidden_state.mean(1) for ids in texts])

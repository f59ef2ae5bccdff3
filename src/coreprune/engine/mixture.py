"""Inputs of several priors, as many of each as its weight says.

All that is measured on inputs is a mean over them. Over w_i N inputs of each part it is the mean Σ w_i E_i under the
mixture, and so nothing behind this file knows of weights.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils import _pytree as pytree

from coreprune.engine.local import generator_for
from coreprune.engine.probes import batch_size, fits
from coreprune.model.capture import Arguments, Captured, rows_of
from coreprune.priors.data import Data
from coreprune.priors.gaussian import Gaussian
from coreprune.priors.matched import Matched
from coreprune.priors.mixture import Mixture, Part
from coreprune.priors.text import Text, places

__all__ = ["first_rows", "mixed_calls", "mixed_tokens", "seed_of", "shared"]


def shared(most: Sequence[int | None], weights: Sequence[float], otherwise: int) -> list[int]:
    """How many inputs of each part: w_i N, rounded, one at least, with the largest N for which there are as many.

    Args:
        most: that each part has, None without end. weights: they add up to one. otherwise: N where none has an end.

    Example:
        >>> shared([100, None], [0.4, 0.6], 8)
        [100, 150]
        >>> shared([30, 100], [0.5, 0.5], 8)
        [30, 30]
    """
    total = min((n / w for n, w in zip(most, weights, strict=True) if n is not None), default=otherwise)
    wanted = [max(1, round(w * total)) for w in weights]
    return [n if most[i] is None else min(n, most[i] or 1) for i, n in enumerate(wanted)]


def seed_of(seed: int, part: int) -> int:
    """The seed of a part, so that two that are alike draw different inputs."""
    return generator_for(seed, f"part {part}").initial_seed()


def mixed_tokens(
    prior: Mixture, model: nn.Module, table: tuple[Tensor, int], seed: int, draw: Callable[[Any, int], Tensor]
) -> tuple[Tensor, Mixture]:
    """Sequences of all parts, (sequences, length), in an order of the seed, and the mixture as it was drawn.

    Args:
        prior: of texts. model: that reads them. table: the example's tokens, and the rows of what they index.
        seed: of every choice. draw: the sequences of a part that is no noise, for a seed.
    """
    parts, weights = [part for part, _ in prior.weighed], [weight for _, weight in prior.weighed]
    length = _length(parts, model, int(table[0].shape[1]))
    most: list[int | None] = []
    for i, part in enumerate(parts):
        if isinstance(part, (Gaussian, Data, Matched)):  # no end, as it is noise
            most.append(None)
            continue
        parts[i] = whole = replace(part, length=length)
        most.append(len(draw(whole, 0)) if isinstance(whole, Text) else -(-whole.tokens // length))
    drawn = []
    for i, count in enumerate(shared(most, weights, 1)):
        part, own = parts[i], seed_of(seed, i)
        if isinstance(part, (Gaussian, Data, Matched)):
            drawn.append(torch.randint(table[1], (count, length), generator=torch.Generator().manual_seed(own)))
        else:
            parts[i] = few = replace(part, tokens=count * length)
            drawn.append(draw(few, own))
    ids = torch.cat(drawn)
    order = torch.randperm(len(ids), generator=generator_for(seed, "order"))
    return ids[order], Mixture(tuple(zip(parts, weights, strict=True)))


def _length(parts: Iterable[Part], model: nn.Module, shown: int) -> int:
    """The longest part's length, where the model has places for it; where nobody knows, no more than the example's."""
    lengths = [part.length for part in parts if not isinstance(part, (Gaussian, Data, Matched))]
    known = places(model)
    free = all(isinstance(part, Text) for part in parts)  # which is taken as it was asked
    return min(max(lengths), known if known < 2**31 or free else shown)


def mixed_calls(
    prior: Mixture, captured: Captured, otherwise: int, seed: int, draw: Callable[[Any, int, int], Iterable[Arguments]]
) -> tuple[list[Arguments], Mixture]:
    """Calls of all parts in turn, and the mixture as it was drawn.

    The inputs of one call are of one part, as BatchNorms may use the statistics of what is run together.

    Args:
        prior: of numbers. captured: the graph. otherwise: inputs in all where there is nothing but noise.
        seed: of every choice. draw: inputs of noise or of matched images: (part, how many at least, seed).
    """
    parts, weights = [part for part, _ in prior.weighed], [weight for _, weight in prior.weighed]
    own = batch_size(captured)
    unit = 1 if not own or fits(captured, own + 1) else own  # that a graph can be run on
    given = {i: list(part.calls()) for i, part in enumerate(parts) if isinstance(part, Data)}
    most: list[int | None] = []
    for i, part in enumerate(parts):
        held = part.count if isinstance(part, Matched) else sum(map(rows_of, given.get(i, ())))
        most.append(None if isinstance(part, Gaussian) else max(held // unit, 1))
    placed: list[tuple[float, int, Arguments]] = []
    for i, units in enumerate(shared(most, weights, -(-otherwise // unit))):
        part, count = parts[i], units * unit
        if isinstance(part, Matched):
            parts[i] = part = replace(part, count=count)
        calls = list(_first(given[i] if i in given else draw(part, count, seed_of(seed, i)), count))
        placed += [((j + 0.5) / len(calls), i, call) for j, call in enumerate(calls)]
    placed.sort(key=lambda one: one[:2])
    return [call for _, _, call in placed], Mixture(tuple(zip(parts, weights, strict=True)))


def _first(calls: Iterable[Arguments], count: int) -> Iterator[Arguments]:
    """So many inputs of some calls."""
    for call in calls:
        if count <= 0:
            return
        yield first_rows(call, count)
        count -= rows_of(call)


def first_rows(call: Arguments, count: int) -> Arguments:
    """The first inputs of a call.

    Example:
        >>> first_rows(((torch.arange(4), 2.0), {}), 3)
        ((tensor([0, 1, 2]), 2.0), {})
    """
    rows = rows_of(call)

    def cut(value: Any) -> Any:
        return value[:count] if isinstance(value, Tensor) and value.shape[:1] == (rows,) else value

    result: Arguments = call if rows <= count else pytree.tree_map(cut, call)
    return result

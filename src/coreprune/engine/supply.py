"""What a training is fed: batches of noise, or inputs that are there, and some of either that no step sees."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.utils import _pytree as pytree

from coreprune.engine.local import generator_for
from coreprune.engine.probes import synthesise
from coreprune.errors import InvalidInputError
from coreprune.model.capture import Arguments, Captured, rows_of
from coreprune.priors.data import Data

__all__ = ["HELD", "SHARE", "Noise", "Pool", "pooled"]

#: inputs that the loss is measured on before and after, and the share of the user's own that is kept back for it
HELD, SHARE = 128, 8


@dataclass(frozen=True)
class Noise:
    """Batches of noise, each of a generator of its own.

    Attributes:
        captured: whose inputs. mean: of numbers. std: theirs. scales: factors on it, in turn. size: of a batch.
        seed: of all.
    """

    captured: Captured
    mean: float | Tensor
    std: float | Tensor
    scales: tuple[float, ...]
    size: int
    seed: int

    @property
    def held(self) -> Sequence[Arguments]:
        """Batches of another seed; their inputs are the same whatever the size of a batch."""
        each = -(-HELD // len(self.scales))
        drawn = [self._drawn("held out", i, each) for i in range(len(self.scales))]
        return [part for call in drawn for part in _split(call, self.size)]

    def batch(self, step: int) -> Arguments:
        """The batch of a step."""
        return self._drawn("step", step, self.size)

    def _drawn(self, what: str, number: int, rows: int) -> Arguments:
        seed = generator_for(self.seed, f"{what}/{number}").initial_seed()
        std = self.std * self.scales[number % len(self.scales)]
        return next(synthesise(self.captured, 1, seed, self.mean, std, batch=rows))


@dataclass(frozen=True)
class Pool:
    """Inputs that are there, all of them once before any comes again.

    Attributes:
        groups: calls of many rows each, which differ in shape.
        held: batches that no step sees.
        size: of a batch. seed: of their order.
    """

    groups: tuple[Arguments, ...]
    held: Sequence[Arguments]
    size: int
    seed: int

    def batch(self, step: int) -> Arguments:
        """The batch of a step: the rows of every group are shuffled and cut, and the batches shuffled, every round."""
        counts = [-(-rows_of(group) // self.size) for group in self.groups]
        turn, place = divmod(step, sum(counts))
        generator = generator_for(self.seed, f"round/{turn}")
        orders = [torch.randperm(rows_of(group), generator=generator) for group in self.groups]
        batches = [(group, part) for group, order in zip(self.groups, orders, strict=True)
                   for part in order.split(self.size)]  # fmt: skip
        return _taken(*batches[int(torch.randperm(len(batches), generator=generator)[place])])


def pooled(law: Data, other: Data | None, *, steps: int, size: int, seed: int) -> Pool:
    """The inputs of a loader, and those that are held out: of another loader, or some of its own.

    Args:
        law: the loader; at most steps × size of its inputs are read, and those held out. other: the other, if any.
        steps: of training. size: of a batch. seed: of their order.

    Raises:
        InvalidInputError: there are too few.
    """
    groups = _grouped(law, steps * size + HELD)
    if other is not None:
        return Pool(groups, [part for group in _grouped(other, HELD) for part in _split(group, size)], size, seed)
    train: list[Arguments] = []
    held: list[Arguments] = []
    most = max(groups, key=rows_of)
    for number, group in enumerate(groups):
        order = torch.randperm(rows_of(group), generator=generator_for(seed, f"held out/{number}"))
        back = min(HELD // len(groups), len(order) // SHARE)
        back = 1 if group is most and not back and len(order) > 1 else back
        train.append(_taken(group, order[back:]))
        held += _split(_taken(group, order[:back]), size) if back else []
    if not held:
        raise InvalidInputError("the data hold no two inputs of one shape: give more, as some are kept back to measure")
    return Pool(tuple(train), held, size, seed)


def _grouped(law: Data, limit: int) -> tuple[Arguments, ...]:
    """The first inputs of a loader, those of one shape side by side in one call."""
    found: dict[Any, list[list[Any]]] = {}
    specs: dict[Any, Any] = {}
    count = 0
    for call in law.calls():
        leaves, spec = pytree.tree_flatten(call)
        rows = rows_of(call)
        if not rows:
            raise InvalidInputError("the data yield inputs without a tensor of one row or more: yield batches")
        key = (repr(spec), *(_look(leaf, rows) for leaf in leaves))
        found.setdefault(key, []).append(leaves)
        specs[key] = spec
        count += rows
        if count >= limit:
            break
    groups: list[Arguments] = []
    for key, calls in found.items():
        columns = zip(*calls, strict=True)
        joined = [torch.cat(list(c)) if key[i + 1][0] == "rows" else c[0] for i, c in enumerate(columns)]
        groups.append(pytree.tree_unflatten(joined, specs[key]))
    return tuple(groups)


def _look(leaf: Any, rows: int) -> tuple[Any, ...]:
    """What must be the same for two leaves to be put side by side."""
    if not isinstance(leaf, Tensor):
        return "value", repr(leaf)
    if leaf.dim() and len(leaf) == rows:
        return "rows", tuple(leaf.shape[1:]), leaf.dtype, leaf.device
    return "tensor", tuple(leaf.shape), leaf.dtype, repr(leaf.tolist())


def _taken(call: Arguments, rows: Tensor) -> Arguments:
    """Some inputs of a call."""
    count = rows_of(call)
    at = {v.device: rows.to(v.device) for v in pytree.tree_leaves(call) if isinstance(v, Tensor)}

    def one(value: Any) -> Any:
        return value[at[value.device]] if isinstance(value, Tensor) and value.dim() and len(value) == count else value

    result: Arguments = pytree.tree_map(one, call)
    return result


def _split(call: Arguments, size: int) -> list[Arguments]:
    """A call in parts of so many inputs."""
    return [_taken(call, part) for part in torch.arange(rows_of(call)).split(size)]

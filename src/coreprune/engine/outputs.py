"""What all cuts together do to what a network puts out, measured on inputs that the cut did not see.

Three figures of the first output, dense y against small z:

- divergence, where the network predicts tokens: mean over predictions of KL(p_y ‖ p_z), in nats;
- cosine: mean over vectors of ⟨y, z⟩ / ‖y‖‖z‖, a vector being the last axis of (N, d) and (N, T, d), and else all
  that one input gives;
- relative error: √(Σ|y − z|² / Σ|y − ȳ|²), a share of the outputs' spread, with a mean ȳ for each number of a vector:
  what always answers with the mean is off by 1.

Budgets may be driven by any of them: `coreprune.planning`.
"""

from __future__ import annotations

import math
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import islice
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.functional import cosine_similarity
from torch.utils import _pytree as pytree

from coreprune.engine.inputs import Prior, drawn, drawn_tokens, least_operations, with_tokens
from coreprune.engine.local import Progress
from coreprune.engine.mixture import first_rows, seed_of, shared
from coreprune.engine.norms import normed
from coreprune.engine.probes import batch_size, predicts, token_tables
from coreprune.errors import InvalidInputError
from coreprune.maths.certificate import Spread
from coreprune.model.capture import Arguments, Captured, first_line, leaves_of, rows_of
from coreprune.model.untouched import drawing, evaluating
from coreprune.priors.data import Data
from coreprune.priors.filled import MaskFilled
from coreprune.priors.gaussian import Gaussian
from coreprune.priors.generated import Generated
from coreprune.priors.matched import Matched
from coreprune.priors.mixture import Mixture
from coreprune.priors.normlayer import NormLayer
from coreprune.priors.text import Text
from coreprune.priors.zipf import Zipf

__all__ = ["MEASURES", "Amount", "Held", "Outputs", "at_hand", "compared", "held_out"]

TOGETHER = 512  # tokens of a call
SHORTEST = 16  # tokens of a sequence that was halved
LITTLE = 1e10  # floating operations that noise may take where nobody asked for figures
_NUMBERS = 2**21  # numbers of both outputs that are compared at a time

#: what a budget can be driven by → in words, and whether it is to be at least so much
MEASURES: Mapping[str, tuple[str, bool]] = {
    "divergence": ("nats per token", False),
    "cosine": ("cosine of the outputs", True),
    "output_error": ("relative error of the outputs", False),
}


@dataclass(frozen=True)
class Amount:
    """How much to measure on.

    Attributes:
        tokens: of text, inputs: of noise and data, images: that are matched. Most of each.
        rows: sequences of text at least, which are halved until there are as many; 0 leaves them as they are.
    """

    tokens: int = 4096
    inputs: int = 128
    images: int = 32
    rows: int = 0


FEW = Amount()


@dataclass(frozen=True)
class Held:
    """Inputs to measure on.

    Attributes:
        calls: (args, kwargs). said: what they are, in words. unseen: whether the cut did not see them.
        independent: whether each is a draw of one law that knows nothing of the others. Images that were matched
            together and parts of one text are not.
    """

    calls: Iterable[Arguments]
    said: str
    unseen: bool = True
    independent: bool = False

    def facts(self, outputs: Outputs) -> dict[str, Any]:
        """What was measured, and on what, as plain data."""
        return {**outputs.to_json(), "inputs": self.said, "held_out": self.unseen}


@dataclass(frozen=True)
class Outputs:
    """How far the small network's outputs are from the dense one's: see the head of this file.

    Attributes:
        divergence: None where no tokens are predicted. cosine: None where an output is one number, which has no
            direction. Both and output_error: of the first output.
    """

    divergence: float | None
    cosine: float | None
    output_error: float

    def to_json(self) -> dict[str, Any]:
        """As plain data, with six digits."""
        known = {"divergence": self.divergence, "cosine": self.cosine, "output_error": self.output_error}
        return {key: float(f"{value:.6g}") for key, value in known.items() if value is not None}

    @property
    def finite(self) -> bool:
        """Whether all figures are numbers."""
        return all(math.isfinite(value) for value in self.to_json().values())


def compared(dense: nn.Module, small: nn.Module, calls: Iterable[Arguments], tables: Collection[int]) -> Outputs | None:
    """Run both networks, in evaluation mode.

    Args:
        dense: before. small: after. Neither is changed.
        calls: inputs. tables: rows of the tables that tokens are read from; a last axis of that size predicts tokens.

    Returns:
        None where the outputs hold no floating numbers.

    Raises:
        InvalidInputError: the inputs do not fit.

    Example:
        >>> net, other = (nn.Linear(2, 3, bias=False) for _ in range(2))
        >>> _ = other.weight.data.copy_(2 * net.weight.data)
        >>> found = compared(net, other, [((torch.randn(64, 2),), {})], ())
        >>> round(found.cosine, 4), found.divergence
        (1.0, None)
    """
    sums = _Sums()
    with evaluating(dense, small), torch.no_grad():
        for args, kwargs in calls:
            y, z = (_first(model, args, kwargs) for model in (dense, small))
            if y is None or z is None or y.shape != z.shape:
                return None
            sums.add(y, z, predicts=predicts(y, tables))
    return sums.outputs()


class _Sums:
    """Running sums in float64."""

    def __init__(self) -> None:
        self.divergence, self.predictions = 0.0, 0
        self.cosine, self.vectors = 0.0, 0
        self.difference, self.spread, self.numbers = 0.0, Spread(), 0

    def add(self, y: Tensor, z: Tensor, *, predicts: bool) -> None:
        """Take in the outputs of one call."""
        rows = [v.reshape(-1, v.shape[-1]) if v.dim() in {2, 3} else v.reshape(len(v), -1) for v in (y, z)]
        few = max(1, _NUMBERS // max(rows[0].shape[1], 1))
        for a, b in zip(*(part.split(few) for part in rows), strict=True):
            p, q = a.float(), b.float()
            self.cosine += float(cosine_similarity(p, q, dim=-1, eps=1e-12).double().sum())
            self.difference += float((p - q).double().square().sum())
            self.spread.add(p)
            if predicts:
                logs, others = p.log_softmax(-1), q.log_softmax(-1)
                self.divergence += float((logs.exp() * (logs - others)).double().sum())
                self.predictions += len(p)
        self.vectors, self.numbers = self.vectors + len(rows[0]), self.numbers + y.numel()

    def outputs(self) -> Outputs | None:
        """The means."""
        if not self.vectors:
            return None
        spread = self.spread.total
        relative = math.sqrt(self.difference / spread) if spread > 0 else (math.inf if self.difference else 0.0)
        divergence = max(self.divergence / self.predictions, 0.0) if self.predictions else None
        cosine = self.cosine / self.vectors if self.numbers > self.vectors else None
        return Outputs(divergence, cosine, relative)


def _first(model: nn.Module, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> Tensor | None:
    """The first floating output of a call."""
    try:
        with drawing(0, model.parameters()):  # what the code draws itself is drawn alike by both
            leaves = leaves_of(model(*args, **kwargs))
    except (RuntimeError, IndexError, TypeError, ValueError) as error:
        raise InvalidInputError(
            f"the network cannot be run on the inputs to measure on ({first_line(error)})"
        ) from error
    found = (v for v in leaves if isinstance(v, Tensor) and v.is_floating_point() and v.dim() and v.numel())
    return next(found, None)


def at_hand(prior: Prior, captured: Captured) -> bool:
    """Whether figures that nobody asked for cost little beside the cut, and say something.

    Nothing has to be written or matched first; and noise is run through small networks only, without BatchNorms, which
    remember other inputs.
    """
    if isinstance(prior, (Gaussian, Zipf)):
        each = least_operations(captured) / max(batch_size(captured), 1)
        return not normed(captured) and each * FEW.inputs <= LITTLE
    if isinstance(prior, Mixture):
        return all(at_hand(part, captured) for part, _ in prior.weighed)
    return isinstance(prior, (Text, Data))


def held_out(
    prior: Prior,
    model: nn.Module,
    captured: Captured,
    seed: int,
    progress: Progress | None = None,
    most: Amount = FEW,
) -> Held | None:
    """Inputs of a prior that the cut does not see, where it has some: of another seed, or a part that it left.

    Args:
        prior: of the cut. model: the dense network. captured: its graph. seed: of the cut. progress: of drawing.
        most: how much.

    Returns:
        None where none can be had: the network was captured block by block, the data can be read once, or the prior is
            of what comes inside the network.
    """
    if captured.path or isinstance(prior, NormLayer):
        return None
    if isinstance(prior, Mixture):
        parts = [part for part, _ in prior.weighed]
        held = [held_out(part, model, captured, seed_of(seed, i), progress, most) for i, part in enumerate(parts)]
        return _of_parts(prior, held)
    if isinstance(prior, Gaussian):
        return _noise(captured, prior, seed + 1, most)
    if isinstance(prior, Matched):
        fewer = replace(prior, count=min(prior.count, most.images), together=min(prior.together, most.images))
        calls = fewer.draw(model, captured.arguments, seed + 1, progress)
        return Held(calls, f"{fewer.count} images matched with another seed")
    if isinstance(prior, Generated):
        short = replace(prior, tokens=max(min(prior.tokens, most.tokens), prior.length))
        ids = short.draw(model, seed + 1, progress)
        return Held(_tokens(captured, ids), f"{ids.numel():,} tokens that the dense network wrote with another seed")
    if isinstance(prior, MaskFilled):
        few = replace(prior, tokens=max(min(prior.tokens, most.tokens), prior.length))
        ids = few.draw(model, seed + 1, progress)
        return Held(_tokens(captured, ids), f"{ids.numel():,} tokens that were filled into masks with another seed")
    if isinstance(prior, Zipf):
        some = replace(prior, tokens=max(min(prior.tokens, most.tokens), prior.length))
        ids = drawn_tokens(some, model, captured, seed + 1)
        return Held(_tokens(captured, ids), f"{ids.numel():,} random tokens drawn with another seed", independent=True)
    if isinstance(prior, Text):
        ids, unseen = prior.held_out(model, most.tokens)
        ids = _rows(ids, most.rows)
        place = "of your text" if prior.data_used else "of generic text"
        said = f"{ids.numel():,} {'held-out tokens' if unseen else 'tokens'} {place}"
        return Held(_tokens(captured, ids), said, unseen)
    return None if isinstance(prior.loader, Iterator) else _given(prior, most.inputs)


def _of_parts(prior: Mixture, held: Sequence[Held | None]) -> Held | None:
    """Inputs of all parts of a mixture, as many numbers, or tokens, of each as its weight says."""
    found = [one for one in held if one is not None]
    if len(found) < len(held):
        return None
    sizes = [[_size(call) for call in one.calls] for one in found]
    wanted = shared([sum(own) for own in sizes], [weight for _, weight in prior.weighed], 1)
    calls: list[Arguments] = []
    for one, own, left in zip(found, sizes, wanted, strict=True):
        for call, size in zip(one.calls, own, strict=True):
            rows = round(left * rows_of(call) / size)
            calls += [first_rows(call, rows)] if rows > 0 else []
            left -= size  # noqa: PLW2901
    return Held(calls, " and ".join(f"some of {one.said}" for one in found), all(one.unseen for one in found))


def _noise(captured: Captured, prior: Gaussian, seed: int, most: Amount) -> Held:
    """Numbers that are drawn, or tokens evenly from their table."""
    leaves = [leaf for leaf in pytree.tree_leaves(captured.arguments) if isinstance(leaf, Tensor) and leaf.dim()]
    tokens = bool(token_tables(captured))
    each = max(leaf[0].numel() for leaf in leaves) if leaves and tokens else 1
    calls = list(drawn(captured, prior, max(-(-most.tokens // each) if tokens else most.inputs, 1), seed))
    count = sum(next(len(v) for v in pytree.tree_leaves(call) if isinstance(v, Tensor) and v.dim()) for call in calls)
    return Held(calls, f"{count} inputs drawn with another seed", independent=True)


def _size(call: Arguments) -> int:
    """Numbers, or tokens, of the first tensor."""
    return next((v.numel() for v in pytree.tree_leaves(call) if isinstance(v, Tensor) and v.numel()), 1)


def _rows(ids: Tensor, least: int) -> Tensor:
    """Sequences, halved until there are so many, or they are short."""
    while len(ids) < least and ids.shape[1] >= 2 * SHORTEST:
        half = ids.shape[1] // 2
        ids = torch.cat([ids[:, :half], ids[:, half : 2 * half]])
    return ids


def _tokens(captured: Captured, ids: Tensor) -> list[Arguments]:
    return [with_tokens(captured, part) for part in ids.split(max(1, TOGETHER // ids.shape[1]))]


def _given(prior: Data, most: int) -> Held:
    """The first of the user's own inputs, which the cut did see."""
    calls, count = [], 0
    for call in islice(prior.calls(), most):
        calls.append(call)
        count += next((len(v) for v in pytree.tree_leaves(call) if isinstance(v, Tensor) and v.dim()), 1)
        if count >= most:
            break
    return Held(calls, f"the first {count} inputs of the data given, which the cut was fitted to", False)

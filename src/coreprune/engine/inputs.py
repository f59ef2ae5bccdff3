"""The inputs that a captured network is observed on: which prior, drawn or out of a loader, cut to what it can take."""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import replace
from typing import Any, get_args

import torch
from torch import Tensor, nn
from torch.utils import _pytree as pytree

from coreprune.engine.imposed import vectors
from coreprune.engine.local import Progress
from coreprune.engine.mixture import mixed_calls, mixed_tokens
from coreprune.engine.norms import normed
from coreprune.engine.probes import (
    batch_size,
    by_shape,
    crops,
    fits,
    fitting,
    halved,
    synthesise,
    token_tables,
)
from coreprune.errors import InvalidInputError
from coreprune.model.capture import Arguments, Captured
from coreprune.priors.data import Data, Drawn
from coreprune.priors.filled import MaskFilled
from coreprune.priors.gaussian import Gaussian, check_deviations
from coreprune.priors.generated import Generated
from coreprune.priors.matched import Matched
from coreprune.priors.mixture import Mixture
from coreprune.priors.normlayer import NormLayer
from coreprune.priors.text import Text, places
from coreprune.priors.zipf import Zipf

__all__ = [
    "PRIORS",
    "Prior",
    "check_prior",
    "drawn",
    "drawn_tokens",
    "forced",
    "inputs",
    "named",
    "prior_of",
    "settled",
    "with_tokens",
]

Prior = Gaussian | Data | Generated | MaskFilled | Text | Matched | Zipf | Mixture | NormLayer

#: name → prior, with its own defaults
PRIORS: Mapping[str, type[Gaussian | Generated | MaskFilled | Matched | NormLayer | Text | Zipf]] = {
    "noise": Gaussian,
    "generated": Generated,
    "text": Text,
    "matched": Matched,
    "zipf": Zipf,
    "filled": MaskFilled,
    "norm": NormLayer,
}
#: what each that is of tokens is called where there are none
_LAWS = {Generated: "text", MaskFilled: "text", Text: "text", Zipf: "Zipf's law"}
#: Where there are no data: tokens or vectors that are drawn, pixels that are drawn, and the fewest inputs. Deep in a
#: convolutional net few positions are left of an image, which is why it takes more of them.
POSITIONS, PIXELS, PROBES = 4096, 2**16, 8
#: tokens of text that are run together: enough for fast products, and few enough for the predictions of each
TOKENS = 1024
#: inputs and pixels that are run together, if the network takes batches of that size
TOGETHER, AREA = 4, 2**18


def check_prior(prior: Any) -> None:
    """Raise InvalidInputError unless it is a prior, or the name of one, or several names with + between them."""
    if isinstance(prior, str):
        if prior == "auto":
            return
        if not set(prior.split("+")) <= set(PRIORS):
            hint = "; noise is the Gaussian one" if "gauss" in prior.lower() else ""
            raise InvalidInputError(f"prior={prior!r} was asked: there are auto, {', '.join(PRIORS)}{hint}")
        prior = named(prior)
    if not isinstance(prior, get_args(Prior)):
        raise InvalidInputError(f"prior={prior!r} was given: give a name, a coreprune.Gaussian or another prior")
    if isinstance(prior, Mixture):
        tuple(prior.weighed)  # refuses what is none
    if isinstance(prior, Gaussian) and isinstance(
        prior.std, (int, float, Tensor)
    ):  # else it is refused where it is used
        check_deviations(torch.as_tensor(prior.std))


def named(prior: Prior | str) -> Prior:
    """The prior of a name, or an equal mixture of those of several with + between them; a value is itself.

    Example:
        >>> named("zipf").said == named("zipf+zipf").weighed[1][0].said
        True
    """
    if not isinstance(prior, str):
        return prior
    parts: list[Any] = [PRIORS[name]() for name in prior.split("+")]
    result: Prior = parts[0] if len(parts) == 1 else Mixture(tuple((part, 1.0) for part in parts))
    return result


def prior_of(prior: Gaussian | Data, captured: Captured | None = None) -> str:
    """The prior in words, for a network that is no stack; and what its BatchNorms do, if it has some."""
    if isinstance(prior, Data):
        return f"{prior.said}, in the dense network"
    norms = "" if captured is not None and not normed(captured) else ", BatchNorm on their own statistics"
    return f"{prior.said} through the dense network{norms}"


def forced(prior: Gaussian | Data) -> bool:
    """Whether BatchNorms are to use the statistics of what they get, as they were not trained on it."""
    return prior.forced if isinstance(prior, Drawn) else isinstance(prior, Gaussian)


def inputs(captured: Captured, prior: Gaussian | Data, seed: int) -> Iterator[Arguments]:
    """Batches of the prior that the graph can be run on.

    Noise is the same everywhere, so that a part of a large image says what the image does: it is drawn half as high
    and wide, where the graph can do with that.

    Args:
        captured: the graph. prior: noise, or a loader. seed: of the noise.
    """
    if isinstance(prior, Data):
        for call in prior.calls():
            yield from fitting(captured, call)
    else:
        less = halved(captured, max(_numbers(next(crops(captured, (2,)), captured))[1], batch_size(captured)))
        count, together = _numbers(less)
        last = by_shape(captured)
        for call in drawn(less, prior, count, seed, together):
            yield pytree.tree_map(_channels_last, call) if last else call


def _channels_last(value: Any) -> Any:
    """Images with their channels next to each other, on which everything is faster."""
    image = isinstance(value, Tensor) and value.dim() == 4 and value.is_floating_point()
    return value.contiguous(memory_format=torch.channels_last) if image else value


def drawn(captured: Captured, prior: Gaussian, count: int, seed: int, together: int = TOGETHER) -> Iterator[Arguments]:
    """Batches of at least `count` inputs that are drawn: numbers from the prior, tokens evenly."""
    if isinstance(prior.mean, Tensor) or isinstance(prior.std, Tensor):
        raise InvalidInputError("a prior per feature was given: for a network that is no stack give numbers, or data=")
    size = max(batch_size(captured), 1)
    batch = size if size >= together or not fits(captured, together) else together
    std = 1.0 if prior.std is None else float(prior.std)
    yield from synthesise(captured, -(-count // batch), seed, float(prior.mean), std, batch=batch)


def _numbers(captured: Captured) -> tuple[int, int]:
    """How many inputs to draw, and how many of them to run together.

    The fewest with POSITIONS tokens or vectors, or with PIXELS pixels where the input is an image, but PROBES at least.
    """
    first = next((v for v in pytree.tree_leaves(captured.arguments) if isinstance(v, Tensor) and v.dim()), None)
    if first is None:
        return PROBES, TOGETHER
    image = first.is_floating_point() and first.dim() > 3
    inner: torch.Size | tuple[int, ...] = first.shape[1:]
    if image:
        inner = first.shape[2:]
    elif first.is_floating_point():
        inner = first.shape[1:-1]
    each = max(math.prod(inner), 1)
    count = max(PROBES, -(-(PIXELS if image else POSITIONS) // each))
    batches = -(-count // max(TOGETHER, AREA // each))
    return count, -(-count // batches)  # batches of one size, so that no more are drawn than are wanted


def settled(
    prior: Prior, model: nn.Module, captured: Captured, seed: int, progress: Progress | None = None
) -> tuple[Gaussian | Data, Any]:
    """The prior as noise or a loader, and what to capture the network with where the loader has another shape.

    Args:
        prior: any. model: not changed. captured: its graph. seed: of what is drawn. progress: of drawing.

    Returns:
        The prior, and example inputs or None.
    """
    if isinstance(prior, Matched):
        return Drawn(prior.draw(model, captured.arguments, seed, progress), False, prior.said, True), None
    if isinstance(prior, Data) and isinstance(prior.loader, Iterator):  # it can be read once
        return replace(prior, loader=list(prior.loader)), None
    if isinstance(prior, Mixture):
        return _mixed(prior, model, captured, seed, progress)
    if isinstance(prior, NormLayer):
        return _before_norms(prior, captured, seed), None
    if not isinstance(prior, (Generated, MaskFilled, Text, Zipf)):
        return prior, None
    _table(captured, _LAWS[type(prior)])
    own = isinstance(prior, (Text, Generated)) and prior.data_used
    law = Drawn((), False, prior.said, given=own)
    return _in_calls(law, captured, _ids(prior, model, captured, seed, progress))


def _before_norms(prior: NormLayer, captured: Captured, seed: int) -> Drawn:
    """Noise for as many inputs as give each norm the vectors that are asked."""
    if not isinstance(prior.samples, int) or prior.samples < 1:
        raise InvalidInputError(f"{prior} was given: give one vector at least")
    if captured.path:
        raise InvalidInputError(
            "prior='norm' was asked of a network that was captured block by block, whose blocks get what was recorded "
            "with the example, and once: leave prior out"
        )
    each = vectors(captured)
    count = max(PROBES, -(-prior.samples // each))
    together = min(count, max(TOGETHER, POSITIONS // each))
    return Drawn(list(drawn(captured, Gaussian(), count, seed, together)), False, prior.said, True)


def _ids(
    prior: Generated | MaskFilled | Text | Zipf,
    model: nn.Module,
    captured: Captured,
    seed: int,
    progress: Progress | None,
) -> Tensor:
    """Sequences of tokens."""
    if isinstance(prior, Zipf):
        return drawn_tokens(prior, model, captured, seed)
    return prior.draw(model) if isinstance(prior, Text) else prior.draw(model, seed, progress)


def _in_calls(law: Drawn, captured: Captured, ids: Tensor) -> tuple[Drawn, Any]:
    """A law of these tokens, and example inputs of their shape."""
    rows = min(max(2, TOKENS // ids.shape[1]), len(ids))  # of a batch, which the network is then captured with
    calls = [with_tokens(captured, part) for part in ids[: len(ids) // rows * rows].split(rows)]
    return replace(law, loader=calls), with_tokens(captured, ids[:rows])


def _mixed(
    prior: Mixture, model: nn.Module, captured: Captured, seed: int, progress: Progress | None
) -> tuple[Drawn, Any]:
    """Inputs of all parts of a mixture."""
    own = any(isinstance(part, Matched) or (isinstance(part, (Gaussian, Data)) and forced(part))
              for part, _ in prior.weighed)  # fmt: skip
    if prior.texts:
        ids, asked = mixed_tokens(
            prior,
            model,
            _table(captured, "text"),
            seed,
            lambda part, seed: _ids(part, model, captured, seed, progress),
        )
        return _in_calls(Drawn((), False, asked.said, own, asked.data_used), captured, ids)
    count, together = _numbers(captured)

    def draw(part: Gaussian | Matched, many: int, seed: int) -> Iterable[Arguments]:
        if isinstance(part, Matched):
            return part.draw(model, captured.arguments, seed, progress)
        return drawn(captured, part, many, seed, min(many, together))

    calls, asked = mixed_calls(prior, captured, count, seed, draw)
    return Drawn(calls, False, asked.said, own, asked.data_used), None


def drawn_tokens(prior: Zipf, model: nn.Module, captured: Captured, seed: int) -> Tensor:
    """Tokens by Zipf's law from the network's table, in sequences no longer than what it is known to take.

    Raises:
        InvalidInputError: nothing among the inputs is tokens.
    """
    tokens, rows = _table(captured, "Zipf's law")
    known = places(model) < 2**31  # else only the example says how long a sequence may be
    return prior.draw(model, rows, seed) if known else prior.draw(model, rows, seed, int(tokens.shape[1]))


def least_operations(captured: Captured) -> float:
    """Floating operations of the convolutions and linear layers alone, from the shapes at hand."""
    total = 0.0
    for node in captured.graph.graph.nodes:
        if str(node.target).startswith(("aten.conv1d", "aten.conv2d", "aten.conv3d", "aten.linear")):
            weight = node.args[1].meta["val"].shape
            total += 2.0 * math.prod(node.meta["val"].shape) * math.prod(weight[1:])
    return total


def with_tokens(captured: Captured, ids: Tensor) -> Arguments:
    """The example's arguments with other tokens; what has the tokens' shape, such as a mask, follows them.

    Raises:
        InvalidInputError: nothing among the inputs is tokens, or what goes with them cannot follow.
    """
    leaves, spec = pytree.tree_flatten(captured.arguments)
    tokens, rows = _table(captured, "text")
    shape = tokens.shape
    if int(ids.max()) >= rows:
        raise InvalidInputError(
            f"the text has token {int(ids.max())} and the network a table of {rows}: give the network's own tokenizer"
        )

    def following(value: Any) -> Any:
        if value is tokens:
            return ids.to(value.device, value.dtype)
        if isinstance(value, Tensor) and value.shape[:1] == shape[:1] and value.shape != shape:
            raise InvalidInputError(
                f"an input of shape {tuple(value.shape)} goes with the tokens, so that text cannot take their place: "
                "give example_inputs with the tokens alone, or prior='noise'"
            )
        if not isinstance(value, Tensor) or value.shape != shape:
            return value
        first = value.flatten()[0]
        if bool((value == first).all()):
            return torch.full(ids.shape, first.item(), dtype=value.dtype, device=value.device)
        if bool((value == torch.arange(shape[1], device=value.device)).all()):
            return torch.arange(ids.shape[1], dtype=value.dtype, device=value.device).expand(ids.shape)
        raise InvalidInputError(
            "an input beside the tokens differs from token to token, so that text cannot be put in their place: "
            "give example_inputs with the tokens alone, or prior='noise'"
        )

    result: Arguments = pytree.tree_unflatten([following(v) for v in leaves], spec)
    return result


def _table(captured: Captured, law: str) -> tuple[Tensor, int]:
    """The example's tokens, (sequences, length), and the rows of their table.

    Raises:
        InvalidInputError: nothing among the inputs is tokens, so that the law is no prior.
    """
    named = dict(zip(captured.inputs, pytree.tree_leaves(captured.arguments), strict=True))
    tables = {name: rows for name, rows in token_tables(captured).items() if named[name].dim() == 2}
    name = max(tables, key=lambda one: tables[one], default=None)
    if name is None:
        raise InvalidInputError(f"the network reads no tokens, so that {law} is no prior of it: give prior='noise'")
    return named[name], tables[name]

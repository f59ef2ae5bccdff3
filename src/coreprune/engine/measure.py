"""What all cuts together do to a network's outputs, measured: dense against small on the same inputs."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils import _pytree as pytree

from coreprune.engine.verify import FEWEST, Verification, exceeded
from coreprune.errors import InvalidInputError
from coreprune.maths.certificate import Spread, relative_error
from coreprune.model.capture import Arguments, first_line, leaves_of
from coreprune.model.untouched import drawing, evaluating, sparing

__all__ = ["measured"]

_NUMBERS = 2**22  # numbers of each output that are compared at a time, in float64


@sparing
def measured(
    dense: nn.Module,
    small: nn.Module,
    batches: Iterable[Arguments],
    *,
    prior: str,
    samples: int,
    delta: float,
    data_used: bool,
    independent: bool = True,
) -> Verification:
    """Compare two networks of the same outputs, input by input.

    Args:
        dense: the network before. small: after. Both are run in eval mode.
        batches: arguments of calls; the first axis of every output runs over inputs.
        prior: where the inputs come from, in words.
        samples: stop after so many inputs.
        delta: probability with which the statement about the tail may fail.
        data_used: whether the inputs are the user's.
        independent: whether they are independent draws; of others the share of the tail is counted, and no more.

    Raises:
        InvalidInputError: too few inputs, or none that fit.
    """
    worst: list[Tensor] = []
    difference, spread = 0.0, Spread()
    with evaluating(dense, small), torch.no_grad():
        for args, kwargs in batches:
            pair = [_outputs(model, args, kwargs) for model in (dense, small)]
            if pair[0].shape != pair[1].shape:
                raise InvalidInputError(
                    "outputs differ in shape: verify a network against the dense one it was made from"
                )
            if not bool(torch.isfinite(pair[0]).all()):
                raise InvalidInputError("the dense network gives NaN or infinite outputs on these inputs: check them")
            for rows in zip(*(one.split(max(1, _NUMBERS // one.shape[1])) for one in pair), strict=True):
                y, z = (one.double() for one in rows)
                worst.append((y - z).abs().amax(1))
                difference += float((y - z).square().sum())
                spread.add(y)
            if sum(len(one) for one in worst) >= samples:
                break
    count = sum(len(one) for one in worst)
    if count < FEWEST:
        raise InvalidInputError(f"{count} inputs are too few to measure on: give at least {FEWEST}")
    relative = relative_error(torch.tensor([difference]), torch.tensor([spread.total]))
    exceed, probability = exceeded(torch.cat(worst), delta if independent else None)
    return Verification(
        (), prior, "", "", None, None, relative, count, exceed, probability, delta, data_used, independent
    )


def _outputs(model: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Tensor:
    """All floating outputs of a call, (inputs, …) flattened side by side."""
    try:
        with drawing(0, model.parameters()):  # what the code draws itself is drawn alike by both
            leaves = leaves_of(model(*args, **kwargs))
    except (RuntimeError, IndexError, TypeError, ValueError) as error:
        raise InvalidInputError(
            f"the inputs do not fit the network ({first_line(error)}): give one batch as the network takes "
            "it, on the command line its shape (--input)"
        ) from error
    batch = next((v.shape[0] for v in pytree.tree_leaves((args, kwargs)) if isinstance(v, Tensor) and v.dim()), 1)
    parts = [v for v in leaves if isinstance(v, Tensor) and v.is_floating_point()]
    rows = [v.reshape(batch, -1) for v in parts if v.dim() and v.shape[0] == batch]
    if not rows:
        raise InvalidInputError("the network returns no numbers for each input, so that nothing can be compared")
    return torch.cat(rows, 1)

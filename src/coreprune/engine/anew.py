"""The inputs that a cut was made for, drawn anew to measure it on: of another seed, or what it left of a text."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

from torch import nn

from coreprune.engine.inputs import PRIORS, Prior, named, prior_of
from coreprune.engine.local import Progress
from coreprune.engine.outputs import Amount, Held, held_out
from coreprune.engine.picking import automatic
from coreprune.engine.verify import FEWEST
from coreprune.errors import InvalidInputError
from coreprune.model.capture import Captured, graded
from coreprune.priors.gaussian import Gaussian
from coreprune.priors.normlayer import NormLayer

__all__ = ["anew", "prior_again"]

#: tokens of text for each input that is measured on
LENGTH = 128


@graded
def anew(
    model: nn.Module,
    captured: Captured,
    prior: Prior,
    samples: int,
    seed: int,
    progress: Progress | None = None,
) -> Held:
    """Inputs of a prior that the cut did not see, with what they are.

    Args:
        model: the dense network. captured: its graph. prior: of the inputs. samples: how many, if there are as many.
        seed: of the cut. progress: of drawing.

    Raises:
        InvalidInputError: the prior has no inputs to draw.
    """
    most = Amount(samples * LENGTH, samples, samples, FEWEST)
    found = held_out(prior, model, captured, seed, progress, most)
    if found is None:
        raise InvalidInputError(
            "no inputs can be drawn anew: give inputs=, in Python, or a prior that can be drawn, such as prior='noise'"
        )
    if isinstance(prior, Gaussian):
        return replace(found, said=f"{prior_of(prior).split(' through ')[0]}, drawn with another seed")
    return found


def prior_again(model: nn.Module, captured: Captured, recipe: Mapping[str, Any]) -> Prior:
    """The prior of a cut, as far as its recipe tells it: noise, a named one, or else what suits the network."""
    if recipe.get("prior_values"):
        return Gaussian.from_json(recipe["prior_values"])
    word = str(recipe.get("prior_asked") or "").strip("'")
    if word and set(word.split("+")) <= set(PRIORS):
        law = named(word)
        return Gaussian() if isinstance(law, NormLayer) else law
    if captured.path:
        return Gaussian()
    return automatic(model, captured)

"""Perplexity of a language model before and after, for ``coreprune prune``."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

from torch import Tensor

from coreprune.cli.common import Source
from coreprune.clock import Clock
from coreprune.engine.local import Progress
from coreprune.engine.perplexity import perplexity
from coreprune.errors import InvalidInputError
from coreprune.priors.generated import Generated, writes
from coreprune.priors.text import Text, lines_of, reads
from coreprune.result import Pruned

__all__ = ["check_text", "foretold"]

HELD_OUT, LENGTH = 4096, 128


def check_text(source: Source, text: str | None) -> None:
    """Refuse, before anything is cut, a text that perplexity cannot be measured on.

    Raises:
        InvalidInputError: no language model out of a directory, no tokenizer beside its weights, or no such file.
    """
    if text is None:
        return
    dense = source.network
    if source.directory is None or not writes(dense):
        raise InvalidInputError(
            f"--eval-text was given, but {type(dense).__name__} does not foretell text: leave it out"
        )
    if not reads(dense):
        raise InvalidInputError(
            f"--eval-text was given, but no tokenizer lies in {source.directory} to read it with: put the tokenizer's "
            "files there, or leave it out"
        )
    lines_of(Path(text))


def foretold(source: Source, small: Pruned, text: str | None, progress: Progress) -> Pruned:
    """The result with the perplexities of both networks in its recipe; as it is where it is no language model.

    Args:
        source: the dense network, whose own text is sampled with a seed that the prior does not use.
        small: the result. text: a file to measure on too, which `check_text` has let pass. progress: of sampling.
    """
    dense = source.network
    if source.directory is None or not writes(dense):
        return small
    texts: dict[str, Tensor] = {}
    if text is not None:
        texts[Path(text).name] = Text(text, length=512).draw(dense)
    seed = int(small.plan.recipe["seed"]) + 1
    clock, law = Clock(), Generated(HELD_OUT, LENGTH)
    with clock.stage("writing text"):
        own = law.draw(dense, seed, progress)
        clock.wrote(law.sampled(dense))
    texts[f"{own.numel():,} tokens of the dense network's own text, held out"] = own
    with clock.stage("measuring"):
        found: list[dict[str, Any]] = [
            {"text": t, "tokens": ids.numel(), "dense": perplexity(dense, ids), "small": perplexity(small.model, ids)}
            for t, ids in texts.items()
        ]
    made = replace(small.plan, recipe={**small.plan.recipe, "perplexity": found})
    return replace(small, plan=made, timing=small.timing + clock.timing())

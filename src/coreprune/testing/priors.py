"""What every prior must keep to: inputs that the network takes, decided by the seed, and the truth about data."""

from __future__ import annotations

import copy
import json
import os
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import cache
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils import _pytree as pytree

import coreprune
from coreprune.engine.inputs import Prior, inputs, prior_of, settled
from coreprune.engine.inputs import check_prior as accepted
from coreprune.errors import CorepruneError, InvalidInputError
from coreprune.model.capture import Arguments, Captured, first_line, leaves_of
from coreprune.model.network import discover_network
from coreprune.model.tensors import tensors_of
from coreprune.model.untouched import evaluating
from coreprune.priors.data import Data
from coreprune.priors.gaussian import Gaussian
from coreprune.priors.text import Text
from coreprune.testing.common import Checker, Conformance, other_global_state, same

__all__ = ["check_prior"]

SEEDS = (0, 1)


def check_prior(
    prior: Prior | Callable[[int], Prior], model: nn.Module, example_inputs: Any, *, seeded: bool | None = None
) -> Conformance:
    """Draw a prior's inputs for a network, and run the network on them.

    They must have the form, precisions and sizes of the example, the batch aside (and the length, of tokens); be finite
    and lead to finite outputs; be decided by the seed alone and differ from seed to seed; and leave the network and the
    global random states alone. What the prior says of itself must be one line, and survive JSON where it has `to_json`.
    A prior that says that it uses no data must open no file but the package's, the model's and the installed
    libraries', and must not come with inputs that no seed changes.

    Args:
        prior: a prior, which gets the seed when it draws; or a function of the seed that makes one, as for a subclass
            of `coreprune.Data`, which draws by itself.
        model: a network that the prior is for; not changed.
        example_inputs: one batch, as `coreprune.inspect` takes it.
        seeded: whether another seed gives other inputs; by default yes, but for `Data` and `Text` themselves.

    Returns:
        What was checked.

    Raises:
        ConformanceError: the first thing that is wrong.
        CorepruneError: the example does not fit the model, or the prior refuses this model.

    Example:
        >>> net = nn.Sequential(nn.Conv2d(3, 4, 3), nn.ReLU(), nn.Conv2d(4, 2, 3))
        >>> print(check_prior(coreprune.Gaussian(), net, torch.randn(2, 3, 8, 8)).checked[1])
        decided by the seed
        >>> wrong = coreprune.Data([torch.full((2, 3, 8, 8), torch.nan)])
        >>> check_prior(wrong, net, torch.randn(2, 3, 8, 8))
        Traceback (most recent call last):
        coreprune.testing.common.ConformanceError: prior Data: its inputs hold NaN ... give finite inputs
    """
    make = prior if callable(prior) and not isinstance(prior, type) else lambda seed: prior
    first: Any = make(SEEDS[0])
    checker = Checker(f"prior {type(first).__name__}")
    try:
        accepted(first)
    except InvalidInputError as error:
        checker.fail(f"coreprune.plan does not take it ({error})", "derive from coreprune.Data and give `calls`")
    if seeded is None:
        seeded = callable(prior) or not isinstance(first, (Data, Text))
    captured = discover_network(model, example_inputs, "export").graphs[0]
    state = {name: tensor.clone() for name, tensor in tensors_of(model).items()}
    modes = [module.training for module in model.modules()]
    with checker.untouched_globals("draw from a generator of your own, made from the seed"), _opened() as files:
        law, batches = _drawn(checker, first, model, captured, SEEDS[0])
    alone = all(same(tensor, state[name]) for name, tensor in tensors_of(model).items())
    alone = alone and modes == [module.training for module in model.modules()]
    checker.require(alone, "drawing changed the model", "work on a copy")
    checker.passed("model and global random states left alone")
    with other_global_state(77):
        again = _drawn(checker, make(SEEDS[0]), model, captured, SEEDS[0])[1]
    checker.require(
        _equal(batches, again),
        "one seed gave two sets of inputs",
        "draw from a generator made from the seed, and only it",
    )
    checker.passed("decided by the seed")
    other = _drawn(checker, make(SEEDS[1]), model, captured, SEEDS[1])[1]
    varies = not _equal(batches, other)
    if seeded:
        checker.require(varies, "two seeds gave the same inputs", "use the seed, or pass seeded=False")
        checker.passed("different from seed to seed")
    _form(checker, model, captured, batches)
    _said(checker, first, law)
    _honest(checker, first, law, model, files, varies)
    return checker.result()


def _drawn(
    checker: Checker, prior: Any, model: nn.Module, captured: Captured, seed: int
) -> tuple[Gaussian | Data, list[Arguments]]:
    """The prior as noise or a loader, and its batches."""
    try:
        law, example = settled(prior, model, captured, seed)
        if example is not None:
            captured = discover_network(model, example, "export").graphs[0]
        return law, list(inputs(captured, law, seed))
    except CorepruneError:
        raise
    except Exception as error:
        return checker.fail(
            f"drawing raised {type(error).__name__} ({first_line(error)})", "give inputs, or raise a CorepruneError"
        )


def _equal(one: list[Arguments], other: list[Arguments]) -> bool:
    left, right = pytree.tree_leaves(one), pytree.tree_leaves(other)
    return len(left) == len(right) and all(
        same(a, b) if isinstance(a, Tensor) and isinstance(b, Tensor) else type(a) is type(b) and a == b
        for a, b in zip(left, right, strict=True)
    )


def _form(checker: Checker, model: nn.Module, captured: Captured, batches: list[Arguments]) -> None:
    """The example's form, finite, and finite outputs."""
    checker.require(batches, "it gave no inputs", "give one batch at least")
    expected, form = pytree.tree_flatten(captured.arguments)
    for batch in batches:
        leaves, found = pytree.tree_flatten(batch)
        checker.require(found == form, "its inputs have other arguments than the example", "give them in the same form")
        for value, like in zip(leaves, expected, strict=True):
            if not isinstance(like, Tensor):
                continue
            checker.require(
                isinstance(value, Tensor) and value.dtype == like.dtype,
                f"it gave {getattr(value, 'dtype', type(value).__name__)} for {like.dtype}",
                "keep the dtype of the example",
            )
            free = 1 if like.is_floating_point() else 2  # the batch, and the length of a sequence of tokens
            checker.require(
                value.dim() == like.dim() and value.shape[free:] == like.shape[free:],
                f"it gave shape {tuple(value.shape)} for {tuple(like.shape)}",
                "keep all sizes but that of the batch",
            )
            fine = not value.is_floating_point() or bool(torch.isfinite(value).all())
            checker.require(fine, "its inputs hold NaN or infinite values", "give finite inputs")
    checker.passed("the example's form and precisions, finite")
    try:
        with evaluating(model), torch.no_grad():
            args, kwargs = copy.deepcopy(batches[0])
            outputs = leaves_of(model(*args, **kwargs))
    except Exception as error:  # a module raises whatever its code raises
        checker.fail(f"the model does not run on its inputs ({first_line(error)})", "give inputs that the model takes")
    floating = [v for v in outputs if isinstance(v, Tensor) and v.is_floating_point()]
    fine = all(bool(torch.isfinite(v).all()) for v in floating)
    checker.require(fine, "its inputs lead to NaN or infinite outputs", "give inputs of the size that the model knows")
    checker.passed("the model runs on it")


def _said(checker: Checker, prior: Any, law: Gaussian | Data) -> None:
    """One line for the plan's recipe, and numbers that JSON carries."""
    said = law.said if isinstance(law, Data) else prior_of(law)
    line = isinstance(said, str) and bool(said.strip()) and "\n" not in said
    checker.require(line and json.loads(json.dumps(said)) == said, f"it says {said!r} of itself", "say one line")
    checker.passed("says what it is in one line")
    if not hasattr(prior, "to_json"):
        return
    try:
        written = json.dumps(prior.to_json())
        again = type(prior).from_json(json.loads(written))
        kept = json.dumps(again.to_json()) == written
    except Exception as error:
        checker.fail(f"to_json and back raised {type(error).__name__} ({first_line(error)})", "write plain data")
    checker.require(kept, f"its numbers {written} come back as others", "let from_json be the inverse of to_json")
    checker.passed("survives JSON")


def _honest(
    checker: Checker, prior: Any, law: Gaussian | Data, model: nn.Module, files: list[str], varies: bool
) -> None:
    """Without data: no file of the user's, and no inputs that no seed changes."""
    told = law.data_used
    checker.require(isinstance(told, bool), f"data_used is {told!r}", "say True or False")
    if told:
        checker.passed("says that it uses data")
        return
    own = getattr(getattr(model, "config", None), "_name_or_path", "") or ""
    places = [
        Path(p).resolve() for p in (sys.prefix, sys.base_prefix, Path(coreprune.__file__).parent, "/proc", "/sys")
    ]
    places += [Path(own).resolve()] if own and Path(own).is_dir() else []
    foreign = [f for f in files if not any(Path(f).resolve().is_relative_to(place) for place in places)]
    checker.require(not foreign, f"data_used is False, but it read {', '.join(foreign[:3])}", "say data_used=True")
    generic = isinstance(prior, Text) and prior.path is None
    checker.require(
        varies or generic,
        "data_used is False, but its inputs are the same for every seed, as those of a loader are",
        "say data_used=True, or draw them from the seed",
    )
    checker.passed("says that it uses no data, and opened none")


_watching: list[list[str]] = []


@cache
def _listen() -> None:
    """Python cannot take a hook away again: outside of `_opened` it sleeps."""
    sys.addaudithook(_audit)


def _audit(event: str, details: tuple[Any, ...]) -> None:
    if _watching and event == "open" and isinstance(details[0], (str, bytes)):
        mode = details[1]
        name = os.fsdecode(details[0])
        if (not isinstance(mode, str) or "r" in mode or "+" in mode) and not name.endswith((".py", ".pyc")):
            _watching[-1].append(name)


@contextmanager
def _opened() -> Iterator[list[str]]:
    """Names of the files that are opened for reading within."""
    _listen()
    files: list[str] = []
    _watching.append(files)
    try:
        yield files
    finally:
        _watching.remove(files)

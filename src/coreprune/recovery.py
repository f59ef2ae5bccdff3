"""The verb `distill`: a smaller network trained to agree with the dense one, on inputs of a prior."""

from __future__ import annotations

import hashlib
import math
import numbers
import warnings
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.utils import _pytree as pytree

from coreprune.engine.distill import LOSSES, Supply, Training, agreement_of, train
from coreprune.engine.inputs import Prior, check_prior, named, prior_of, settled
from coreprune.engine.local import Progress
from coreprune.engine.picking import picked
from coreprune.engine.supply import HELD, Noise, Pool, pooled
from coreprune.errors import InvalidInputError, UnsupportedModelError
from coreprune.model.capture import Arguments, Captured, graded, rebuilt, rows_of
from coreprune.model.discover import discover
from coreprune.model.network import plain_module
from coreprune.model.tensors import check_marks, tensors_of
from coreprune.priors.data import Data
from coreprune.priors.filled import MaskFilled
from coreprune.priors.gaussian import Gaussian
from coreprune.priors.generated import Generated
from coreprune.priors.matched import Matched
from coreprune.priors.normlayer import NormLayer
from coreprune.priors.zipf import Zipf
from coreprune.result import Pruned
from coreprune.wish import check_finite

__all__ = ["Wish", "distill", "recovered"]


@dataclass(frozen=True)
class Wish:
    """The arguments of `distill`, which explains them."""

    example_inputs: Any = None
    data: Iterable[Any] | None = None
    prior: Prior | str = "auto"
    loss: str = "auto"
    steps: int = 500
    batch: int = 8
    rate: float = 1e-4
    seed: int = 0
    keep: str | Path | None = None
    progress: Progress | None = None


def distill(
    small: Pruned | nn.Module,
    dense: nn.Module,
    example_inputs: Any = None,
    *,
    data: Iterable[Any] | None = None,
    prior: Prior | str = "auto",
    loss: str = "auto",
    steps: int = 500,
    batch: int = 8,
    rate: float = 1e-4,
    seed: int = 0,
    keep: str | Path | None = None,
    progress: Progress | None = None,
) -> Pruned | nn.Module:
    """Train a copy of a smaller network to agree with the dense one, without labels and by default without data.

    AdamW without weight decay, a rate that rises for a twentieth of the steps and then falls to zero along a cosine,
    gradients of norm 1 at most, and both networks in eval mode. See `coreprune.engine.distill`.

    Args:
        small: what `prune` returned, or its module; not changed.
        dense: the network it was cut from; not changed.
        example_inputs: one batch as both take it; default that of the cut. A stack of Linear layers needs none.
        data: batches of your own inputs to train on, in place of a prior; at most steps × batch of them are read.
        prior: see `plan`; "auto" is what suits the network, and for a stack the Gaussian of the cut.
        loss: "kl", the Kullback-Leibler divergence of softmax over the last axis; "squares", the mean squared
            difference as a share of the dense output's variance; "auto" is "kl" for a causal language model and where
            the one output is (N, C) with C ≥ 2, which are taken for logits, and "squares" otherwise.
        steps: of training. batch: inputs of a step. rate: the highest learning rate.
        seed: decides every random choice.
        keep: directory for the state of the run. If it holds one, the run goes on from there to the same bits.
        progress: called with (done, all, name).

    Returns:
        A network of the same class; for a `Pruned` a `Pruned`, whose recipe has "distilled": how it was trained, and
        the loss before and after on inputs that no step saw.

    Raises:
        InvalidInputError: an argument that cannot be meant, networks that do not belong together, a loss that is not
            finite.
        UnsupportedModelError: inputs cannot be drawn, as the network cannot be captured.
        CheckpointError: `keep` holds another run, or cannot be written.

    Example:
        >>> import coreprune as cp
        >>> dense = nn.Sequential(nn.Linear(4, 32), nn.ReLU(), nn.Linear(32, 2))
        >>> small = cp.prune(dense, units={"0": 8})
        >>> better = distill(small, dense, steps=200, rate=1e-3, loss="squares")
        >>> better.plan.recipe["distilled"]["steps"], better.parameters == small.parameters
        (200, True)

    Source: Hinton et al. 2015, arXiv:1503.02531.
    """
    wish = Wish(example_inputs, data, prior, loss, steps, batch, rate, seed, keep, progress)
    module, recipe = (small.model, small.plan.recipe) if isinstance(small, Pruned) else (small, {})
    trained, facts = recovered(module, dense, recipe, wish)
    if facts["after"] > facts["before"]:
        warnings.warn(
            f"the loss rose from {facts['before']:.4g} to {facts['after']:.4g} on inputs held out, so that the network "
            "is better as it was: give another rate=, or more steps=",
            stacklevel=2,
        )
    if not isinstance(small, Pruned):
        return trained
    known = {
        key: value for key, value in small.plan.recipe.items() if key not in {"perplexity", "outputs"}
    }  # it was the untrained one's
    return replace(small, model=trained, plan=replace(small.plan, recipe={**known, "distilled": facts}))


@graded
def recovered(
    small: nn.Module, dense: nn.Module, recipe: Mapping[str, Any], wish: Wish
) -> tuple[nn.Module, dict[str, Any]]:
    """The trained network, and how it was trained, as plain data.

    Args:
        small: not changed. dense: not changed. recipe: of the cut, as far as it is known. wish: what is asked.
    """
    _check(small, dense, wish)
    check_marks(recipe.get("weights", {}), tensors_of(dense), "the smaller network was cut out of")
    for model in (small, dense):
        plain_module(model)
        check_finite(model.state_dict())
    supply, said, own, reason = _supply(dense, recipe, wish)
    agreement = agreement_of(dense, supply.held, wish.loss)
    settings = {
        "steps": int(wish.steps),
        "batch": int(wish.batch),
        "rate": float(wish.rate),
        "seed": int(wish.seed),
        "prior": said,
        "data_used": own,
        "loss": agreement.kind,
    }
    identity: dict[str, Any] = dict(settings)
    if wish.keep is not None:
        identity |= {"small network": _digest(tensors_of(small)), "dense network": _digest(tensors_of(dense))}
        identity["inputs"] = _digest_of_calls([*supply.held, supply.batch(0)])
    keep = None if wish.keep is None else Path(wish.keep)
    how = Training(int(wish.steps), float(wish.rate), identity, keep, wish.progress)
    trained, before, after = train(small, dense, supply, agreement, how)
    held = sum(rows_of(call) for call in supply.held)
    measured = {"measured": LOSSES[agreement.kind], "held_out": held, "before": before, "after": after}
    measured |= {} if reason is None else {"prior_reason": reason}
    return trained, settings | measured


def _check(small: Any, dense: Any, wish: Wish) -> None:
    """Raise InvalidInputError if an argument is of a kind that cannot be meant."""
    for name, model in (("small", small), ("dense", dense)):
        if not isinstance(model, nn.Module):
            wanted = "what prune returned, or a torch.nn.Module" if name == "small" else "the network that was cut"
            raise InvalidInputError(f"{name} is a {type(model).__name__}: give {wanted}")
    for name, least in (("steps", 1), ("batch", 1), ("seed", 0)):
        value = getattr(wish, name)
        if not isinstance(value, numbers.Integral) or isinstance(value, bool) or int(value) < least:
            raise InvalidInputError(f"{name}={value!r} was asked: give a whole number, {least} or more")
    if not (isinstance(wish.rate, numbers.Real) and 0 < wish.rate < 1):
        raise InvalidInputError(f"rate={wish.rate!r} was asked: give a number between 0 and 1, such as 1e-4")
    if wish.loss not in {"auto", *LOSSES}:
        raise InvalidInputError(f"loss={wish.loss!r} was asked: there are auto, {', '.join(LOSSES)}")
    check_prior(wish.prior)
    if wish.data is not None and wish.prior != "auto":
        raise InvalidInputError("both prior= and data= were given: give one of them")
    if wish.data is not None and not isinstance(wish.data, Iterable):
        raise InvalidInputError(f"data={wish.data!r} was given: give a loader, or a list of batches")


class _Supplied(NamedTuple):
    """Inputs, where they come from in words, whether they are the user's, and why the prior was picked if it was."""

    supply: Supply
    said: str
    own: bool
    reason: str | None = None


def _supply(dense: nn.Module, recipe: Mapping[str, Any], wish: Wish) -> _Supplied:
    """Inputs to train on."""
    law: Prior | str = Data(wish.data) if wish.data is not None else wish.prior
    if isinstance(law, Data):
        return _Supplied(_pool(law, None, wish), law.said, True)
    captured, radius = _captured(dense, recipe, wish)
    reason = None
    if law == "auto":
        known = recipe.get("prior_values") if radius is not None else None
        law, reason = (Gaussian.from_json(known), None) if known else picked(dense, captured)
    law = named(law)
    assert not isinstance(law, Data)
    if isinstance(law, NormLayer):
        raise InvalidInputError(
            "prior='norm' says what comes inside a network, and no inputs: give another prior, or data="
        )
    if isinstance(law, Gaussian):
        features = captured.arguments[0][0].shape[-1] if radius is not None else 0
        said = law.named(features, radius) if radius is not None else prior_of(law).split(" through ")[0]
        mean, std = _scale(law, features, radius)
        noise = Noise(captured, mean, std, tuple(law.scales), int(wish.batch), int(wish.seed))
        return _Supplied(noise, said, False, reason)
    drawn = settled(law, dense, captured, int(wish.seed), wish.progress)[0]
    assert isinstance(drawn, Data)
    other: Data | None = None
    if isinstance(law, (Generated, MaskFilled, Matched, Zipf)):  # as many as are held out, of another seed
        fewer: Prior
        if isinstance(law, Matched):
            fewer = replace(law, count=min(law.count, law.together, HELD))
        else:
            fewer = replace(law, tokens=min(law.tokens, HELD * law.length))
        found = settled(fewer, dense, captured, int(wish.seed) + 1, wish.progress)[0]
        assert isinstance(found, Data)
        other = found
    return _Supplied(_pool(drawn, other, wish), drawn.said, drawn.data_used, reason)


def _pool(law: Data, other: Data | None, wish: Wish) -> Pool:
    """The inputs of a loader as training takes them."""
    return pooled(law, other, steps=int(wish.steps), size=int(wish.batch), seed=int(wish.seed))


def _captured(dense: nn.Module, recipe: Mapping[str, Any], wish: Wish) -> tuple[Captured, float | None]:
    """The dense network's graph, and for a stack the largest norm of an input.

    Raises:
        UnsupportedModelError: it cannot be captured in one piece.
    """
    example = wish.example_inputs
    if example is None and recipe.get("inputs") is not None:
        example = rebuilt(recipe["inputs"])
    found, radius = discover(dense, example, recipe.get("capture", "auto")), None
    if not found.graphs:
        given = recipe.get("radius")
        radius = float(given) if given is not None else math.sqrt(max(found.features, 1))
        kind = next(dense.parameters()).dtype
        found = discover(dense, torch.zeros(1, found.features, dtype=kind), "export")
    if found.graphs[0].path:
        raise UnsupportedModelError(
            f"{type(dense).__name__} was captured block by block, so that no inputs can be drawn for it: give data="
        )
    return found.graphs[0], radius


def _scale(law: Gaussian, features: int, radius: float | None) -> tuple[float | Tensor, float | Tensor]:
    """Mean and standard deviation of the inputs.

    Raises:
        InvalidInputError: they do not fit the network.
    """
    if radius is not None:
        law.inputs(features, radius)  # refuses what does not fit
        return law.mean, radius / math.sqrt(max(features, 1)) if law.std is None else law.std
    if isinstance(law.mean, Tensor) or isinstance(law.std, Tensor):
        raise InvalidInputError("a prior per feature was given: for a network that is no stack give numbers, or data=")
    return law.mean, 1.0 if law.std is None else law.std


def _digest(tensors: Mapping[str, Tensor]) -> str:
    """SHA-256 of tensors and their names."""
    found = hashlib.sha256()
    for name, tensor in sorted(tensors.items()):
        found.update(f"{name} {tensor.dtype} {tuple(tensor.shape)}".encode())
        found.update(tensor.detach().cpu().contiguous().flatten().view(torch.uint8).numpy().data)
    return found.hexdigest()


def _digest_of_calls(calls: Iterable[Arguments]) -> str:
    leaves = [v for call in calls for v in pytree.tree_leaves(call) if isinstance(v, Tensor)]
    return _digest({f"{i:08d}": v for i, v in enumerate(leaves)})

"""Training a smaller network to agree with the dense one: no labels, only what the dense network answers.

One step takes a batch of inputs, runs both networks on it, and moves the small one along −∇ loss:

    next tokens, classes:  loss = mean over rows of KL(softmax y ‖ softmax z)
    any other outputs:     loss = mean over outputs of mean (y − z)² / var(y),

with y of the dense network and z of the small one. At step t of s, w of them for warming up, the rate is

    r(t) = rate · min(1, (t + 1)/w) · ½ (1 + cos(π · max(0, t − w)/(s − w))).

Both networks are in eval mode, so that BatchNorms keep their statistics and nothing is dropped at random. What a step
does depends on the seed and its number alone: a run that was stopped goes on to the same bits.

Source: Hinton et al. 2015, Distilling the Knowledge in a Neural Network, arXiv:1503.02531; Loshchilov and Hutter 2019,
AdamW, arXiv:1711.05101.
"""

from __future__ import annotations

import copy
import importlib
import math
import os
import re
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils import _pytree as pytree

from coreprune.engine.local import Progress
from coreprune.errors import CheckpointError, InvalidInputError
from coreprune.io.checkpoint import read_tensors, write_tensors
from coreprune.io.sidecar import read_json, write_json
from coreprune.model.capture import Arguments, first_line, leaves_of
from coreprune.model.untouched import evaluating
from coreprune.priors.generated import writes

__all__ = ["LOSSES", "Agreement", "State", "Supply", "Training", "agreement_of", "moved", "rate_at", "train"]

#: name → what it is, in words
LOSSES: Mapping[str, str] = {
    "kl": "Kullback-Leibler divergence from the dense network's softmax, in nats",
    "squares": "mean squared difference as a share of the dense output's variance",
}
#: share of the steps in which the rate rises, and the largest norm of a gradient
WARM, CLIP = 0.05, 1.0
#: seconds between two states that are kept
INTERVAL = 30.0
_HALF = (torch.float16, torch.bfloat16)


class Supply(Protocol):
    """Where inputs come from: each step has its batch, whoever asks and whenever."""

    @property
    def held(self) -> Sequence[Arguments]:
        """Batches that no step sees."""

    def batch(self, step: int) -> Arguments:
        """The batch of a step."""


@dataclass(frozen=True)
class Training:
    """How to train.

    Attributes:
        steps: of the optimiser. rate: the highest learning rate.
        identity: what the run depends on, as plain data; a state of another run is refused.
        keep: directory for the state of a run that is stopped; none is kept without.
        progress: called with (done, all, name) before each step.
    """

    steps: int
    rate: float
    identity: Mapping[str, Any]
    keep: Path | None = None
    progress: Progress | None = None


@dataclass(frozen=True)
class Agreement:
    """How far two networks' outputs are apart.

    Attributes:
        kind: a key of LOSSES.
        spreads: for "squares", the variance of each dense output.
    """

    kind: str
    spreads: tuple[float, ...] = ()

    def __call__(self, dense: Sequence[Tensor], small: Sequence[Tensor], mask: Tensor | None) -> tuple[Tensor, int]:
        """The mean loss, and over how many rows.

        Args:
            dense: outputs y. small: outputs z, of the same shapes. mask: of the rows that count, (N, T).
        """
        if [y.shape for y in dense] != [z.shape for z in small]:
            raise InvalidInputError("the outputs differ in shape: give the dense network that the small one came from")
        if self.kind == "squares":
            pairs = zip(dense, small, self.spreads, strict=True)
            parts = [(y.to(z) - z).square().mean() / spread for y, z, spread in pairs]
            return torch.stack(parts).mean(), len(dense[0])
        (y,), (z,) = dense, small
        rows = slice(None) if mask is None or mask.shape != y.shape[:-1] else mask.to(y.device)
        y, z = y[rows].flatten(0, -2).to(z), z[rows].flatten(0, -2)
        apart = F.kl_div(z.log_softmax(-1), y.log_softmax(-1), reduction="none", log_target=True)
        return apart.sum() / max(len(y), 1), len(y)


def agreement_of(dense: nn.Module, held: Sequence[Arguments], loss: str = "auto") -> Agreement:
    """The loss that suits a network's outputs.

    Args:
        dense: in whatever mode. held: batches to look at. loss: a key of LOSSES, or "auto".

    Raises:
        InvalidInputError: outputs that the loss cannot be taken of.
    """
    sums: list[list[float]] = []
    with evaluating(dense), torch.no_grad():
        first = outputs(dense, held[0])
        classes = len(first) == 1 and first[0].dim() >= 2 and first[0].shape[-1] >= 2
        kind = loss
        if loss == "auto":
            kind = "kl" if writes(dense) or (classes and first[0].dim() == 2) else "squares"
        if kind == "kl":
            if not classes:
                shapes = [tuple(y.shape) for y in first]
                raise InvalidInputError(
                    f"loss='kl' was asked of outputs of shapes {shapes}: give loss='squares', or one output of scores"
                )
            return Agreement("kl")
        for call in held:
            parts = [y.double() for y in outputs(dense, call)]
            sums.append([float(v) for y in parts for v in (y.numel(), y.sum(), y.square().sum())])
    totals = [math.fsum(column) for column in zip(*sums, strict=True)]
    triples = [totals[i : i + 3] for i in range(0, len(totals), 3)]
    spreads = [square / count - (total / count) ** 2 for count, total, square in triples]
    if not all(math.isfinite(spread) and spread > 0 for spread in spreads):
        raise InvalidInputError("an output of the dense network is not finite, or the same for all inputs: check both")
    return Agreement("squares", tuple(spreads))


def outputs(model: nn.Module, call: Arguments) -> list[Tensor]:
    """The outputs that are compared, float32 or wider: the logits of a causal language model, all numbers otherwise.

    Raises:
        InvalidInputError: the inputs do not fit, or nothing comes out that could be compared.
    """
    args, kwargs = call
    try:
        answer: Any = model(*args, **kwargs)
    except (RuntimeError, IndexError, TypeError, ValueError) as error:
        raise InvalidInputError(
            f"{type(model).__name__} cannot be run on the inputs ({first_line(error)}): give example_inputs or data "
            "as the network takes them, or another batch="
        ) from error
    leaves = leaves_of(answer.logits if writes(model) else answer)
    found = [v for v in leaves if isinstance(v, Tensor) and v.is_floating_point() and v.dim()]
    if not found:
        raise InvalidInputError(f"{type(model).__name__} returns no numbers, so that nothing can be compared")
    return [v.float() if v.dtype in _HALF else v for v in found]


def rate_at(step: int, steps: int, rate: float) -> float:
    """r(t), see the head of this module.

    Example:
        >>> [round(rate_at(t, 40, 1.0), 2) for t in (0, 1, 2, 21, 39)]
        [0.5, 1.0, 1.0, 0.5, 0.0]
    """
    warm = max(1, round(WARM * steps))
    fallen = max(0, step - warm) / max(1, steps - warm)
    return rate * min(1.0, (step + 1) / warm) * 0.5 * (1 + math.cos(math.pi * fallen))


def train(
    small: nn.Module, dense: nn.Module, supply: Supply, agreement: Agreement, how: Training
) -> tuple[nn.Module, float, float]:
    """A copy of the small network, trained; and the loss on the held-out inputs before and after.

    Weights in half precision are trained in float32 and rounded in the end.

    Args:
        small: not changed. dense: not changed.
        supply: of inputs. agreement: the loss. how: the rest.

    Raises:
        InvalidInputError: nothing can be trained, or the loss is not finite.
        CheckpointError: the state that was kept is not that of this run.
    """
    device = _device(small)
    student, teacher = _widened(small, device), _on(dense, device)
    named = {name: p for name, p in student.named_parameters() if p.requires_grad}
    if not named:
        raise InvalidInputError("every parameter of the small network is frozen: set requires_grad on what may change")
    state = State(how.keep, how.identity) if how.keep is not None else None
    with evaluating(student, teacher):
        before = _held_out(student, teacher, supply, agreement)
        _steps(student, teacher, supply, agreement, how, state, named)
        trained = copy.deepcopy(small)
        with torch.no_grad():
            for name, p in trained.named_parameters():
                if name in named:
                    p.copy_(named[name])
                    named[name].copy_(p)
        after = _held_out(student, teacher, supply, agreement)
    return trained, before, after


def _steps(
    student: nn.Module,
    teacher: nn.Module,
    supply: Supply,
    agreement: Agreement,
    how: Training,
    state: State | None,
    named: Mapping[str, nn.Parameter],
) -> None:
    """All steps that are left of a run."""
    optimiser = torch.optim.AdamW(named.values(), lr=how.rate, weight_decay=0.0, foreach=False)
    done = state.restore(named, optimiser) if state is not None else 0
    last = time.monotonic()
    for step in range(done, how.steps):
        if how.progress:
            how.progress(step, how.steps, "distilling")
        optimiser.param_groups[0]["lr"] = rate_at(step, how.steps, how.rate)
        optimiser.zero_grad(set_to_none=True)
        loss, _ = _loss(student, teacher, supply.batch(step), agreement)
        if not bool(torch.isfinite(loss)):
            raise InvalidInputError(f"the loss is not finite at step {step + 1}: give a smaller rate, or other inputs")
        loss.backward()
        nn.utils.clip_grad_norm_(list(named.values()), CLIP)
        optimiser.step()
        if state is not None and (step + 1 == how.steps or time.monotonic() - last >= INTERVAL):
            state.write(step + 1, named, optimiser)
            last = time.monotonic()
    if how.progress:
        how.progress(how.steps, how.steps, "distilling")


def _loss(student: nn.Module, teacher: nn.Module, call: Arguments, agreement: Agreement) -> tuple[Tensor, int]:
    """The loss of one batch, with the graph of its gradient, and its rows."""
    device = next(student.parameters()).device
    call = moved(call, device)
    with torch.no_grad():
        y = outputs(teacher, call)
    masks = [v for v in (call[1].get("attention_mask"),) if isinstance(v, Tensor) and v.dim() == 2]
    return agreement(y, outputs(student, moved(call, device, _kind(student))), masks[0].bool() if masks else None)


@torch.no_grad()
def _held_out(student: nn.Module, teacher: nn.Module, supply: Supply, agreement: Agreement) -> float:
    """The mean loss over the rows of the held-out batches."""
    parts = [_loss(student, teacher, call, agreement) for call in supply.held]
    return math.fsum(float(loss) * rows for loss, rows in parts) / max(sum(rows for _, rows in parts), 1)


def moved(call: Arguments, device: torch.device, kind: torch.dtype | None = None) -> Arguments:
    """A call with its tensors on a device, and those in half precision, if a kind is given, in that."""

    def one(value: Any) -> Any:
        if not isinstance(value, Tensor):
            return value
        return value.to(device, kind if kind is not None and value.dtype in _HALF else value.dtype)

    result: Arguments = pytree.tree_map(one, call)
    return result


def _kind(model: nn.Module) -> torch.dtype | None:
    """The dtype that inputs in half precision need, if the model is in none."""
    kinds = {p.dtype for p in model.parameters() if p.is_floating_point()}
    return None if kinds & set(_HALF) else next(iter(kinds), None)


def _widened(model: nn.Module, device: torch.device) -> nn.Module:
    """A copy on a device, in float32 if any of it is in half precision."""
    twin = copy.deepcopy(model).to(device)
    return twin.float() if any(p.dtype in _HALF for p in twin.parameters()) else twin


def _on(model: nn.Module, device: torch.device) -> nn.Module:
    """The model itself if it is on the device, or a copy that is."""
    return model if all(p.device == device for p in model.parameters()) else copy.deepcopy(model).to(device)


def _device(model: nn.Module) -> torch.device:
    """Where to train: where the model is if that is no CPU, and otherwise what accelerate or torch finds."""
    own = next((p.device for p in model.parameters()), torch.device("cpu"))
    if own.type != "cpu":
        return own
    try:
        found = importlib.import_module("accelerate").PartialState().device
    except ImportError:
        found = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    return torch.device(found)


@dataclass(frozen=True)
class State:
    """A directory with what a run needs to go on: the weights, the optimiser's moments, the number of steps.

    state.json names the file of tensors that belongs to it. The tensors are written first and the JSON is put in its
    place last, so that the directory is whole at any time.

    Attributes:
        path: the directory. identity: of the run.
    """

    path: Path
    identity: Mapping[str, Any]

    def write(self, step: int, named: Mapping[str, Tensor], optimiser: torch.optim.Optimizer) -> None:
        """Keep the state after so many steps, in place of the one before."""
        tensors = {f"weight/{name}": p.detach() for name, p in named.items()}
        for name, p in named.items():
            tensors |= {f"{key}/{name}": value for key, value in optimiser.state.get(p, {}).items()}
        file = f"step-{step}.safetensors"
        try:
            self.path.mkdir(parents=True, exist_ok=True)
            write_tensors(self.path / "new.part", tensors)
            os.replace(self.path / "new.part", self.path / file)
            write_json(self.path / "new.part", "distillation", 1, {"step": step, "file": file, "run": self.identity})
            os.replace(self.path / "new.part", self.path / "state.json")
            for old in self.path.glob("step-*.safetensors"):
                if old.name != file:
                    old.unlink()
        except OSError as error:
            raise CheckpointError(
                f"cannot write {self.path} ({error.strerror}): make room or choose another place"
            ) from error
        finally:
            (self.path / "new.part").unlink(missing_ok=True)

    def restore(self, named: Mapping[str, nn.Parameter], optimiser: torch.optim.Optimizer) -> int:
        """Put the state that was kept into a network and its optimiser; the steps that are done, 0 without a state.

        Raises:
            CheckpointError: it is another run's, or not whole, or the directory holds other things.
        """
        if not (self.path / "state.json").exists():
            ours = re.compile(r"step-\d+\.safetensors|new\.part")
            if self.path.exists() and not (
                self.path.is_dir() and all(ours.fullmatch(file.name) for file in self.path.iterdir())
            ):
                raise CheckpointError(f"{self.path} holds no state of a run: give keep= a new or empty directory")
            return 0
        body = read_json(self.path / "state.json", "distillation", 1)
        run, file, step = body.get("run"), body.get("file"), body.get("step")
        if not (isinstance(run, dict) and isinstance(file, str) and isinstance(step, int)) or Path(file).name != file:
            raise CheckpointError(f"{self.path}/state.json is damaged: remove the directory and begin again")
        other = [key for key, value in self.identity.items() if run.get(key) != value]
        if other:
            raise CheckpointError(
                f"{self.path} holds the state of a run with another {other[0]}: give the same again, or keep= a new "
                "directory"
            )
        tensors = read_tensors(self.path / file)
        for i, (name, p) in enumerate(named.items()):
            weight = tensors.get(f"weight/{name}")
            if weight is None or weight.shape != p.shape or weight.dtype != p.dtype:
                raise CheckpointError(f"{self.path}/{file} has no {name} of this network: begin again")
            with torch.no_grad():
                p.copy_(weight)
            own = {key: tensors.get(f"{key}/{name}") for key in ("step", "exp_avg", "exp_avg_sq")}
            if all(value is not None for value in own.values()):
                body.setdefault("moments", {})[i] = own
        groups = optimiser.state_dict()["param_groups"]
        optimiser.load_state_dict({"state": body.get("moments", {}), "param_groups": groups})
        return step

"""Images that agree with what a network's BatchNorms remember of its training data, and nothing else of it.

Each BatchNorm keeps the mean μ and variance σ² of what every channel got in training. Noise x is moved by gradient
descent until its own statistics (m, v) at all L BatchNorms are near those:

    minimise over x    1/L Σ_l mean over channels of (m − μ)²/σ² + (√(v/σ²) − 1)².

No label, picture or statistic of data is needed beside the checkpoint. Correlations between channels, which no
BatchNorm remembers, come out of the network itself, as its filters answer to images that could have been.

Source: Yin et al. 2020, DeepInversion, arXiv:1912.08795; Cai et al. 2020, ZeroQ, arXiv:2001.00281, there for
quantisation.
"""

from __future__ import annotations

import copy
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils import _pytree as pytree

from coreprune.errors import InvalidInputError
from coreprune.model.capture import Arguments, arguments, first_line

__all__ = ["Matched", "matches"]

_NORMS = (nn.BatchNorm1d, nn.BatchNorm2d, nn.BatchNorm3d)


@dataclass(frozen=True)
class Matched:
    """Images matched to BatchNorm statistics.

    Attributes:
        count: images in all.
        steps: of gradient descent (Adam).
        rate: the first step size, in units of `std`; it falls to zero in a straight line.
        mean: of the noise that it starts from, and `std` its standard deviation.
        together: images that are matched together, which share their statistics.

    Example:
        >>> import coreprune as cp
        >>> net = nn.Sequential(nn.Conv2d(1, 4, 3), nn.BatchNorm2d(4), nn.ReLU(), nn.Conv2d(4, 2, 3)).eval()
        >>> small = cp.prune(net, torch.randn(2, 1, 8, 8), units={"0": 2}, prior=cp.Matched(count=4, steps=2))
        >>> small.plan.recipe["data_used"]
        False
    """

    count: int = 128
    steps: int = 60
    rate: float = 0.1
    mean: float = 0.0
    std: float = 1.0
    together: int = 64

    @property
    def said(self) -> str:
        """The prior in words."""
        return f"{self.count} images matched to the BatchNorm statistics in {self.steps} steps from noise"

    def draw(
        self, model: nn.Module, example: Any, seed: int, progress: Callable[[int, int, str], None] | None = None
    ) -> list[Arguments]:
        """Batches of calls.

        Args:
            model: with BatchNorms; not changed.
            example: inputs of the network; its first floating tensor is the image, all else stays.
            seed: of the noise. progress: called with steps done, in all, and what is done.

        Raises:
            InvalidInputError: there is no BatchNorm with running statistics, or no gradient comes through.
        """
        if not matches(model):
            raise InvalidInputError(
                f"{type(model).__name__} has no BatchNorm with running statistics: give another prior, such as 'noise'"
            )
        if min(self.count, self.steps, self.together) < 1 or not (self.rate > 0 and self.std > 0):
            raise InvalidInputError(f"{self} was given: give positive numbers")
        generator = torch.Generator().manual_seed(seed)
        frozen = copy.deepcopy(model).eval().requires_grad_(False).float()
        leaves, spec = pytree.tree_flatten(arguments(example))
        at = next((i for i, v in enumerate(leaves) if isinstance(v, Tensor) and v.is_floating_point()), None)
        if at is None:
            raise InvalidInputError("example_inputs hold no image: give another prior, such as 'noise'")
        batches, own = -(-self.count // self.together), leaves[at].shape[0]
        calls: list[Arguments] = []
        for batch in range(batches):
            rows = min(self.together, self.count - batch * self.together)
            noise = torch.randn(rows, *leaves[at].shape[1:], generator=generator)

            def call(x: Tensor, rows: int = rows) -> Arguments:
                new = [_rows(v, own, rows) if i != at else x for i, v in enumerate(leaves)]
                result: Arguments = pytree.tree_unflatten(new, spec)
                return result

            def step(done: int, batch: int = batch) -> None:
                if progress:
                    progress(batch * self.steps + done, batches * self.steps, "matching images")

            start = (noise * self.std + self.mean).to(leaves[at].device)
            calls.append(call(self._moved(frozen, start, call, step).to(leaves[at].dtype)))
        return calls

    def _moved(
        self, frozen: nn.Module, x: Tensor, call: Callable[[Tensor], Arguments], step: Callable[[int], None]
    ) -> Tensor:
        """One batch after gradient descent."""
        x = x.clone().requires_grad_(True)
        optimiser = torch.optim.Adam([x], lr=self.rate * self.std)
        losses: list[Tensor] = []

        def look(norm: Any, given: tuple[Tensor, ...]) -> None:
            losses.append(_distance(given[0], norm))

        norms = [m for m in frozen.modules() if _remembers(m)]
        hooks = [norm.register_forward_pre_hook(look) for norm in norms]
        try:
            for done in range(self.steps):
                step(done)
                losses.clear()
                for group in optimiser.param_groups:
                    group["lr"] = self.rate * self.std * (1 - done / self.steps)
                with torch.enable_grad():
                    args, kwargs = call(x)
                    frozen(*args, **kwargs)
                    loss = torch.stack(losses).mean()
                optimiser.zero_grad()
                loss.backward()
                optimiser.step()
        except RuntimeError as error:
            raise InvalidInputError(
                f"images cannot be matched for {type(frozen).__name__} ({first_line(error)}): give prior='noise'"
            ) from error
        finally:
            for hook in hooks:
                hook.remove()
        step(self.steps)
        if not bool(torch.isfinite(x).all()):
            raise InvalidInputError("matching images ran away to infinity: give a smaller rate, or prior='noise'")
        return x.detach()


def matches(model: nn.Module) -> bool:
    """Whether a network has a BatchNorm with running statistics."""
    return any(_remembers(module) for module in model.modules())


def _remembers(module: nn.Module) -> bool:
    return isinstance(module, _NORMS) and module.running_mean is not None and module.running_var is not None


def _distance(x: Tensor, norm: Any) -> Tensor:
    """(m − μ)²/σ² + (√(v/σ²) − 1)², mean over channels, of (N, C, …)."""
    axes = [axis for axis in range(x.dim()) if axis != 1]
    v, m = torch.var_mean(x, axes, correction=0)
    variance = norm.running_var + norm.eps
    ratio = (v / variance).clamp(min=1e-6).sqrt()
    result: Tensor = ((m - norm.running_mean).square() / variance + (ratio - 1).square()).mean()
    return result


def _rows(value: Any, own: int, rows: int) -> Any:
    """What goes with the images, in as many rows."""
    if isinstance(value, Tensor) and value.dim() and value.shape[0] == own:
        return value[torch.arange(rows, device=value.device) % own]
    return value

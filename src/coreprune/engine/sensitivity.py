"""What an error at a reader costs the whole network: second moments of gradients, no labels and no data.

A small error e in what a reader gets moves the network's outputs by J e. What that costs is, to second order,

    ½ E eᵀ M e,        M = E Jᵀ H J = E u uᵀ,        u = Jᵀ v,  E v vᵀ = H,

so that one backward pass for each batch, from a direction v that is drawn, says M for every reader at once. H is

- where the network predicts tokens (an output of as many numbers as the table has rows that it reads tokens from),
  the Fisher information of its own prediction: v = p − 1_y, y ~ p. ½ tr M Cov(e) is then the divergence of the
  predictions, in nats for each token;
- else the identity over the outputs' energy: tr M Cov(e) is their relative squared error.

M takes the place of WᵀW where units are chosen and budgets are shared out. It does not change how those that go are
replaced, since least squares gives the same T for every M.

Source: Amari 1998, natural gradient; Martens & Grosse 2015, arXiv:1503.05671, gradients of sampled predictions.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping, Sequence
from typing import Any

import torch
from torch import Generator, Tensor

from coreprune.engine.observe import samples
from coreprune.engine.probes import predicts, token_tables
from coreprune.engine.runner import run
from coreprune.maths.streaming import squared
from coreprune.model.capture import Arguments, Captured
from coreprune.model.site import Tap
from coreprune.priors.generated import picked

__all__ = ["sensitivities"]

_ROWS = 256  # predictions that are drawn from at a time


def sensitivities(
    captured: Captured,
    tensors: Mapping[str, Tensor],
    readers: Sequence[tuple[Tap, ...]],
    batches: Iterable[Arguments],
    *,
    seed: int = 0,
    batch_statistics: bool = False,
) -> list[Tensor]:
    """M of every reader.

    Args:
        captured: the graph of the whole network.
        tensors: parameters and buffers, by name; not changed.
        readers: the taps of each.
        batches: inputs of the network, at least one.
        seed: of the directions. batch_statistics: see `coreprune.engine.runner.run`.

    Returns:
        (units·block, units·block) for each reader, float64. Zero where no gradient comes.
    """
    sums: dict[int, Tensor] = {}
    taps = {id(tap): tap for reader in readers for tap in reader}
    generator = torch.Generator().manual_seed(seed)
    predictions = 0.0
    tables = set(token_tables(captured).values())

    def watch(tap: Tap, value: Tensor) -> Tensor:
        passed = (value if value.requires_grad else value.detach().requires_grad_()) * 1
        if passed.requires_grad:
            passed.register_hook(lambda gradient: take(tap, gradient))
        return passed

    def take(tap: Tap, gradient: Tensor) -> None:
        rows = samples(gradient.detach(), tap, gradient.numel()).float()
        one = squared(rows).double()
        sums[id(tap)] = sums[id(tap)].add_(one) if id(tap) in sums else one

    for arguments in batches:
        outputs = run(
            captured, tensors, arguments, taps=taps.values(), hook=watch, batch_statistics=batch_statistics, grad=True
        )
        predictions += _pulled(outputs, tables, generator)
        del outputs  # which hold the graph, and would until the next batch has its own
    result = []
    for reader in readers:
        size = reader[0].entries.shape[0] * reader[0].entries.shape[1]
        total = torch.zeros(size, size, dtype=torch.float64)
        for tap in reader:
            if id(tap) in sums:
                total += sums[id(tap)].to(total.device)
        result.append(total / max(predictions, 1))
    return result


def _pulled(outputs: Sequence[Any], tables: Collection[int], generator: Generator) -> float:
    """Go back from the outputs of one batch along a direction v, and return how many predictions they hold."""
    sources = [o for o in outputs if isinstance(o, Tensor) and o.requires_grad]
    told = next((o for o in sources if predicts(o, tables)), None)
    if told is not None:
        told.backward(_surprise(told.detach(), generator))
        return told.numel() / told.shape[-1]
    if sources:
        torch.autograd.backward(sources, [_noise(o.detach(), generator) for o in sources])
    return 1.0


def _surprise(logits: Tensor, generator: Generator) -> Tensor:
    """P − 1_y, y ~ p, for the predictions p of logits, (…, V) alike."""
    rows = logits.flatten(0, -2)
    result = torch.empty_like(rows)
    for low in range(0, len(rows), _ROWS):
        p = rows[low : low + _ROWS].float().softmax(-1)
        y = picked(p, generator)
        result[low : low + _ROWS] = p.scatter_add_(1, y, p.new_full(y.shape, -1.0))
    return result.view_as(logits)


def _noise(output: Tensor, generator: Generator) -> Tensor:
    """N(0, 1) for every number of an output, over the root of its energy in this batch."""
    centred = output.float() - (output.float().mean(0) if len(output) > 1 else 0.0)
    energy = float(centred.square().sum())
    noise: Any = torch.randn(output.shape, generator=generator)
    result: Tensor = (noise / max(energy, 1e-30) ** 0.5).to(output.device, output.dtype)
    return result

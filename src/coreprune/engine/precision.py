"""Observing in bfloat16, where the processor has instructions for it.

The products of a forward pass take operands in bfloat16 and sum up in float32; norms, residual streams and all else
stay in float32. Rounding adds about 2⁻⁹ of a unit's size to what is seen of it, as noise, far below what a sample of
text leaves open. Moments are summed as ever.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager

import torch
from torch import Tensor

from coreprune.model.capture import Captured

__all__ = ["reduced"]


@contextmanager
def reduced(captured: Captured, tensors: Mapping[str, Tensor]) -> Iterator[Mapping[str, Tensor]]:
    """Context in which products are computed in bfloat16, with the tensors to run the graph on.

    Nothing changes where there are no such instructions, or the tensors are not all float32.

    Args:
        captured: the graph. tensors: parameters and buffers, by name.
    """
    held = [tensors[name] for name in captured.states.values()]
    kinds = {t.dtype for t in held if t.is_floating_point()}
    device = held[0].device.type if held else "cpu"
    if kinds != {torch.float32} or not _capable(device):
        yield tensors
        return
    matrices = {
        captured.states[a.name]
        for node in captured.graph.graph.nodes
        if str(node.target).startswith(("aten.linear.", "aten.addmm.", "aten.mm."))
        for a in node.all_input_nodes
        if a.name in captured.states and tensors[captured.states[a.name]].dim() == 2
    }
    with torch.autocast(device, torch.bfloat16):
        yield {**tensors, **{name: tensors[name].detach().to(torch.bfloat16) for name in matrices}}


def _capable(device: str) -> bool:
    return device == "cuda" or (device == "cpu" and torch.cpu._is_amx_tile_supported())

"""All tensors of a module."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence

import torch
from torch import Tensor, nn

from coreprune.errors import CheckpointError

__all__ = ["check_marks", "marks_of", "narrow", "tensors_of"]

#: entries of a tensor that its mark is of, and how far apart, as a share of the norm, marks of one tensor may be
ENTRIES, APART = 2**16, 0.02
#: entries up to which tensors of one size are marked at once
FEW = 2**12


def tensors_of(model: nn.Module) -> dict[str, Tensor]:
    """Parameters and buffers by name, those that are not saved too, and shared ones under every name.

    Example:
        >>> list(tensors_of(nn.BatchNorm1d(2, affine=False)))
        ['running_mean', 'running_var', 'num_batches_tracked']
    """
    found: dict[str, Tensor] = dict(model.named_parameters(remove_duplicate=False))
    return found | dict(model.named_buffers(remove_duplicate=False))


def marks_of(tensors: Mapping[str, Tensor], names: Iterable[str]) -> dict[str, list[float]]:
    """What tells tensors of one size apart: the size, and sum and norm of up to 65,536 entries, evenly spaced.

    Rounding to half precision changes neither by much, and another training changes the sum.

    Example:
        >>> marks_of({"w": torch.tensor([3.0, 4.0])}, ["w"])
        {'w': [2, 7.0, 5.0]}
    """
    found: dict[str, list[float]] = {}
    alike: dict[object, list[str]] = {}
    values = {name: tensors[name].detach().flatten() for name in dict.fromkeys(names)}
    for name, one in values.items():
        alike.setdefault((one.dtype, one.device, one.numel()) if one.numel() <= FEW else name, []).append(name)
    for group in alike.values():  # the vectors of norms are many, and small
        rows = torch.stack([values[name][:: max(1, values[name].numel() // ENTRIES)] for name in group]).double()
        marks = zip(group, rows.sum(1).tolist(), rows.norm(dim=1).tolist(), strict=True)
        found |= {name: [values[name].numel(), *mark] for name, *mark in marks}
    return {name: found[name] for name in values}


def check_marks(marks: Mapping[str, Sequence[float]], tensors: Mapping[str, Tensor], what: str) -> None:
    """Raise CheckpointError where tensors are not those that the marks were made of.

    Args:
        marks: see `marks_of`; tensors that are not there in that size are left out.
        tensors: the network's. what: "the plan was made for" or the like.
    """
    for name, here in marks_of(tensors, (name for name in marks if name in tensors)).items():
        known = [float(value) for value in marks[name]]
        norm = max(known[2], here[2])
        if known[0] == here[0] and max(abs(a - b) for a, b in zip(known[1:], here[1:], strict=True)) > APART * norm:
            raise CheckpointError(
                f"{what} a network with other weights: {name} has norm {known[2]:.4g} and sum {known[1]:.4g} there, "
                f"{here[2]:.4g} and {here[1]:.4g} here: give that network"
            )


def narrow(device: str) -> bool:
    """Whether a kind of device has instructions that multiply in bfloat16 (CUDA, AMX, AVX-512), which is then faster.

    Example:
        >>> narrow("meta")
        False
    """
    if device != "cpu":
        return device == "cuda"
    able = (getattr(torch.cpu, name, bool) for name in ("_is_amx_tile_supported", "_is_avx512_bf16_supported"))
    return any(one() for one in able)

"""All tensors of a module."""

from __future__ import annotations

import torch
from torch import Tensor, nn

__all__ = ["narrow", "tensors_of"]


def tensors_of(model: nn.Module) -> dict[str, Tensor]:
    """Parameters and buffers by name, those that are not saved too, and shared ones under every name.

    Example:
        >>> list(tensors_of(nn.BatchNorm1d(2, affine=False)))
        ['running_mean', 'running_var', 'num_batches_tracked']
    """
    found: dict[str, Tensor] = dict(model.named_parameters(remove_duplicate=False))
    return found | dict(model.named_buffers(remove_duplicate=False))


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

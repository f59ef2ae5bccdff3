"""All tensors of a module."""

from __future__ import annotations

from torch import Tensor, nn

__all__ = ["tensors_of"]


def tensors_of(model: nn.Module) -> dict[str, Tensor]:
    """Parameters and buffers by name, those that are not saved too, and shared ones under every name.

    Example:
        >>> list(tensors_of(nn.BatchNorm1d(2, affine=False)))
        ['running_mean', 'running_var', 'num_batches_tracked']
    """
    found: dict[str, Tensor] = dict(model.named_parameters(remove_duplicate=False))
    return found | dict(model.named_buffers(remove_duplicate=False))

"""Large products of float32 matrices on the CPU.

PyTorch multiplies matrices with MKL, which uses half of what an AMD processor can do, and convolves with oneDNN, which
uses all of it. A convolution of images of one row with a kernel of one position is a product of matrices, and is as
exact. For each shape oneDNN writes code first, which only large products are worth.
"""

from __future__ import annotations

import torch
from torch import Tensor

__all__ = ["product", "quick"]

#: multiplications from which on it is worth it
LARGE = 2**27


def quick(A: Tensor, B: Tensor) -> bool:
    """Whether a product, see there, is computed by oneDNN."""
    plain = A.dtype == B.dtype == torch.float32 and A.device.type == B.device.type == "cpu"
    rows = plain and A.stride(1) == B.stride(1) == 1 and A.numel() * len(B) >= LARGE
    return rows and torch.get_num_threads() > 1 and torch.backends.mkldnn.is_available()


def product(A: Tensor, B: Tensor) -> Tensor:
    """A Bᵀ, (m, n).

    Args:
        A: (m, k). B: (n, k). It is quickest where rows lie along memory.

    Example:
        >>> product(torch.tensor([[1.0, 2.0]]), torch.tensor([[3.0, 4.0]])).tolist()
        [[11.0]]
    """
    if not quick(A, B):
        return A @ B.T
    (m, k), n = A.shape, len(B)
    image = B.reshape(1, n, 1, k).permute(0, 3, 1, 2)  # k channels of n pixels, which lie pixel by pixel
    result: Tensor = torch.conv2d(image, A.reshape(m, k, 1, 1))
    return result.permute(0, 2, 3, 1).reshape(n, m).T

"""Everything in float64, whatever precision the parameters have and whatever the code casts to.

Two networks that compute the same function differ in float32 by rounding alone, in float64 by a thousand
millionth of that: only there does "equal" mean something. A network in float32 or bfloat16 is not converted
for it. `Double` sees every ATen operator and hands it float64 operands, and the large weights of matrix
products piece by piece.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from functools import cache
from typing import Any

import torch
from torch import Tensor
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode

__all__ = ["Double", "aliases", "mapped", "name_of", "wide", "written"]

#: bytes that a converted piece of a weight may take: less than what an allocator gives back to the system each time
PIECE = 4 * 2**20

_WIDE = {
    torch.float32: torch.float64,
    torch.float16: torch.float64,
    torch.bfloat16: torch.float64,
    torch.complex32: torch.complex128,
    torch.complex64: torch.complex128,
}
#: their result has the type they are given, and only the shape (or a copy) of their operand
_LIKE = {"_to_copy", "empty_like", "zeros_like", "ones_like", "full_like", "rand_like", "randn_like", "new_empty",
         "new_zeros", "new_ones", "new_full", "new_empty_strided"}  # fmt: skip
#: they take entries of a table as they are; converting those taken is enough
_LOOKUPS = frozenset(["embedding", "index", "index_select", "gather", "take", "clone"])
#: they refuse operands of different types, or warn of them
_PARTICULAR = {"conv1d", "conv2d", "conv3d", "conv_transpose1d", "conv_transpose2d", "conv_transpose3d", "prelu",
               "rms_norm", "scaled_dot_product_attention"}  # fmt: skip
_LARGEST = torch.finfo(torch.float32).max


def wide(value: Any) -> Any:
    """A tensor or dtype of less than double precision in double precision; all else as it is.

    Example:
        >>> wide(torch.bfloat16), wide(torch.int64), wide(torch.ones(2)).dtype
        (torch.float64, torch.int64, torch.float64)
    """
    if isinstance(value, Tensor):
        return value.to(_WIDE[value.dtype]) if value.dtype in _WIDE else value
    return _WIDE.get(value, value) if isinstance(value, torch.dtype) else value


def mapped(function: Callable[[Any], Any], value: Any) -> Any:
    """A function of every leaf of nested lists, tuples and dicts: what arguments of an operator are made of."""
    if isinstance(value, (list, tuple)):
        return type(value)([mapped(function, one) for one in value])
    if isinstance(value, dict):
        return {key: mapped(function, one) for key, one in value.items()}
    return function(value)


@cache
def name_of(operator: Any) -> str:
    """What an operator is called with its overload, which is asked for at every node of every run.

    Example:
        >>> name_of(torch.ops.aten.relu.default)
        'aten.relu.default'
    """
    return str(operator)


@cache
def aliases(operator: Any) -> bool:
    """Whether an operator returns its first operand, or a view of it."""
    schema = getattr(operator, "_schema", None)
    return schema is not None and any(result.alias_info is not None for result in schema.returns)


@cache
def written(operator: Any) -> tuple[int, ...]:
    """Which operands an operator writes into."""
    arguments = getattr(getattr(operator, "_schema", None), "arguments", ())
    return tuple(i for i, a in enumerate(arguments) if a.alias_info is not None and a.alias_info.is_write)


class Double(TorchDispatchMode):
    """Context in which floating operators compute and return float64, and complex ones complex128.

    Views of a parameter, and what is written into one, keep its type. Numbers beyond the range of float32, such
    as the least float64 as a mask, count as the end of that range: what a mask means does not depend on the precision.

    Example:
        >>> with torch.no_grad(), Double():
        ...     torch.nn.Linear(2, 1)(torch.ones(1, 2)).float().dtype
        torch.float64
    """

    def __init__(self) -> None:
        """Ready to be entered."""
        super().__init__()  # type: ignore[no-untyped-call]
        self._early = _Early()

    def __enter__(self) -> Any:
        self._early.__enter__()  # type: ignore[no-untyped-call]
        return super().__enter__()  # type: ignore[no-untyped-call]

    def __exit__(self, *exc: object) -> None:
        super().__exit__(*exc)  # type: ignore[no-untyped-call]
        self._early.__exit__(*exc)  # type: ignore[no-untyped-call]

    @contextmanager
    def paused(self) -> Iterator[None]:
        """Context within this one, and no other, in which operators do what they do elsewhere."""
        self.__exit__(None, None, None)
        try:
            yield
        finally:
            self.__enter__()

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        """One operator."""
        kwargs = kwargs or {}
        name, namespace = func.overloadpacket.__name__, func.namespace
        if func is torch.ops.aten.view.dtype or namespace == "prim":
            return func(*args, **kwargs)
        args, kwargs = mapped(_setting, (args, kwargs))
        product = _PRODUCTS.get(f"{namespace}.{name}")
        if product is not None:
            return product(func, *args, **kwargs)
        changes = func._schema.is_mutable
        view = aliases(func) and not changes
        if name in _LIKE:
            kwargs = {**kwargs, "dtype": kwargs.get("dtype") or wide(args[0].dtype)}
        elif changes:
            args, kwargs = _widened(func, args, kwargs)
        elif not view and name not in _LOOKUPS:
            args, kwargs = mapped(wide, (args, kwargs))
        if name in {"_softmax", "_log_softmax"}:
            args = (*args[:2], False)  # no type to change to
        with _double_default():
            result = func(*args, **kwargs)
        return result if changes or view else mapped(wide, result)


class _Early(TorchFunctionMode):
    """Operands widened of functions that ask for operands of one type before they reach an operator."""

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        """One function of PyTorch, called by its name or as an operator."""
        if getattr(func, "__name__", "").partition(".")[0] in _PARTICULAR:
            args, kwargs = mapped(wide, (args, kwargs or {}))
        return func(*args, **(kwargs or {}))


class _double_default:  # noqa: N801
    """Context for one operator: integers that become floating numbers become float64."""

    def __enter__(self) -> None:
        self._before = torch.get_default_dtype()
        torch.set_default_dtype(torch.float64)

    def __exit__(self, *exc: object) -> None:
        torch.set_default_dtype(self._before)


def _setting(value: Any) -> Any:
    """A dtype, widened; a number within the range of float32; all else as it is."""
    if isinstance(value, float) and math.isfinite(value) and abs(value) > _LARGEST:
        return math.copysign(_LARGEST, value)
    return wide(value) if isinstance(value, torch.dtype) else value


def _widened(func: Any, args: Sequence[Any], kwargs: dict[str, Any]) -> tuple[list[Any], dict[str, Any]]:
    """Operands widened, save those that the operator writes into."""
    fixed = written(func)
    names = [func._schema.arguments[i].name for i in fixed]
    new = [value if i in fixed else mapped(wide, value) for i, value in enumerate(args)]
    return new, {k: value if k in names else mapped(wide, value) for k, value in kwargs.items()}


# ---------------------------------------------------------------- matrix products


def _large(value: Tensor) -> bool:
    return value.dtype in _WIDE and 8 * value.numel() > PIECE


def _mm(a: Tensor, b: Tensor) -> Tensor:
    """A b, (m, n), for a of shape (m, k) and b of shape (k, n)."""
    rows, columns = (max(1, PIECE // (8 * max(a.shape[1], 1))) for _ in range(2))
    if _large(b) and not _large(a):
        return _by_columns(wide(a), b, min(columns, b.shape[1]))
    if _large(b):
        return torch.cat([_mm(a, piece) for piece in b.split(min(columns, max(1, b.shape[1] - 1)), 1)], 1)
    if _large(a):
        b = wide(b)
        return torch.cat([_mm(piece, b) for piece in a.split(min(rows, max(1, a.shape[0] - 1)), 0)])
    result: Tensor = wide(a) @ wide(b)
    return result


def _by_columns(a: Tensor, b: Tensor, step: int) -> Tensor:
    """A b for a wide A, some columns of b at a time in one place: new ones for each would leave holes behind."""
    kind = _WIDE[b.dtype]
    result = a.new_empty(a.shape[0], b.shape[1], dtype=torch.promote_types(a.dtype, kind))
    place = b.new_empty(step, b.shape[0], dtype=kind)
    for low in range(0, b.shape[1], step):
        piece = b.narrow(1, low, min(step, b.shape[1] - low))
        result.narrow(1, low, piece.shape[1]).copy_(a @ place[: piece.shape[1]].copy_(piece.T).T)
    return result


def _matmul(func: Any, a: Tensor, b: Tensor) -> Tensor:
    return _mm(a, b)


def _addmm(func: Any, c: Tensor, a: Tensor, b: Tensor, *, beta: float = 1, alpha: float = 1) -> Tensor:
    if not _large(a) and not _large(b):
        result: Tensor = func(wide(c), wide(a), wide(b), beta=beta, alpha=alpha)
        return result
    product = _mm(a, b).mul_(alpha)
    return product if beta == 0 else product.add_(wide(c), alpha=beta)


def _bmm(func: Any, a: Tensor, b: Tensor) -> Tensor:
    """A_e b_e for every e."""
    if not _large(a) and not _large(b):
        result: Tensor = func(wide(a), wide(b))
        return result
    return torch.stack([_mm(x, y) for x, y in zip(a, b, strict=True)])


def _baddbmm(func: Any, c: Tensor, a: Tensor, b: Tensor, *, beta: float = 1, alpha: float = 1) -> Tensor:
    product = _bmm(torch.ops.aten.bmm.default, a, b).mul_(alpha)
    return product if beta == 0 else product.add_(wide(c), alpha=beta)


def _linear(func: Any, x: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
    result = _mm(x.reshape(-1, x.shape[-1]), weight.reshape(-1, weight.shape[-1]).T)
    result = result.reshape(*x.shape[:-1], *weight.shape[:-1])
    return result if bias is None else result.add_(wide(bias))


def _grouped(func: Any, x: Tensor, weight: Tensor, offs: Tensor, *rest: Any, **more: Any) -> Tensor:
    """Rows of x, (N, K), sorted by expert, times their expert's matrix, (E, K, M): `offs` says where each run ends."""
    if x.dim() != 2 or weight.dim() != 3:
        raise NotImplementedError(f"a grouped product of shapes {tuple(x.shape)} and {tuple(weight.shape)}")
    result = x.new_zeros(x.shape[0], weight.shape[2], dtype=torch.float64)
    start = 0
    for matrix, end in zip(weight, offs.tolist(), strict=True):
        if end > start:
            result[start:end] = _mm(x[start:end], matrix)
        start = end
    return result


_PRODUCTS: dict[str, Callable[..., Tensor]] = {
    "aten.mm": _matmul,
    "aten.addmm": _addmm,
    "aten.bmm": _bmm,
    "aten.baddbmm": _baddbmm,
    "aten.linear": _linear,
    "aten._grouped_mm": _grouped,
    "transformers.grouped_mm_fallback": _grouped,
}

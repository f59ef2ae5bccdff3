"""Run a model's own code, and leave its modules as they were."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from contextvars import ContextVar
from functools import wraps
from typing import Any, Concatenate, NamedTuple, ParamSpec, TypeVar

import torch
from torch import Tensor, nn

__all__ = ["drawing", "evaluating", "holding", "sparing", "untouched"]

P = ParamSpec("P")
T = TypeVar("T")

#: whose content is put back
_CONTAINERS = frozenset({dict, list, set, OrderedDict})
#: what `holding` looks after
_TENSORS = frozenset({"_parameters", "_buffers", "_modules", "_non_persistent_buffers_set"})


class untouched:  # noqa: N801
    """Context after which every module has the attributes that it had, and its containers hold what they held.

    A module may lay by for its next call what it has computed from its tensors, as biases that are gathered once in
    eval mode, and in here these tensors may be of another precision, on no device, or stand for a graph's nodes. It may
    as well note that it has registered hooks: these go with the note. Parameters, buffers and submodules are not
    looked after: see `holding`.

    Example:
        >>> class Gathered(nn.Linear):
        ...     def forward(self, x):
        ...         self.last = self.weight[0]
        ...         return x @ self.last
        >>> model = Gathered(3, 2)
        >>> with untouched(model):
        ...     shape = model(torch.ones(4, 3)).shape
        >>> shape, hasattr(model, "last")
        (torch.Size([4]), False)
    """

    def __init__(self, *models: nn.Module) -> None:
        """The models that are to be as they are now."""
        self._before = [(module, _attributes(module)) for model in models for module in model.modules()]

    def __enter__(self) -> None:
        """Nothing is to be done yet."""

    def __exit__(self, *exc: object) -> None:
        for module, before in self._before:
            own = vars(module)
            for name in own.keys() - before.keys() - _TENSORS:
                del own[name]
            for name, (value, content) in before.items():
                own[name] = value
                if content is not None and (value or content):  # most are empty, and stay so
                    value.clear()
                    (value.extend if isinstance(value, list) else value.update)(content)


class evaluating(untouched):  # noqa: N801
    """The same, with the models in eval mode."""

    def __enter__(self) -> None:
        for module, _ in self._before:
            module.training = False


class _Held(NamedTuple):
    buffer: Tensor
    writes: int
    value: Tensor


#: what buffers held when the outermost of functions that spare them began, by id
_spared: ContextVar[dict[int, _Held]] = ContextVar("_spared", default={})  # noqa: B039


def sparing(function: Callable[Concatenate[nn.Module, P], T]) -> Callable[Concatenate[nn.Module, P], T]:
    """The function of models, after which their buffers hold what they held: a model's code may write into them."""

    @wraps(function)
    def spared(model: nn.Module, /, *args: P.args, **kwargs: P.kwargs) -> T:
        models = [one for one in (model, *args) if isinstance(one, nn.Module)]
        around, before = _spared.get(), {}
        for buffer in (b for one in models for b in one.buffers() if not nn.parameter.is_lazy(b)):
            known = around.get(id(buffer))
            same = known is not None and known.writes == _writes(buffer) >= 0
            before[id(buffer)] = known if known and same else _Held(buffer, _writes(buffer), buffer.clone())
        token = _spared.set({**around, **before})
        try:
            return function(model, *args, **kwargs)
        finally:
            _spared.reset(token)
            with torch.no_grad():
                for held in before.values():
                    if _writes(held.buffer) != held.writes:
                        held.buffer.copy_(held.value)

    return spared


def _writes(tensor: Tensor) -> int:
    """How often a tensor was written into; −1 where that is not counted."""
    return -1 if tensor.is_inference() else tensor._version


@contextmanager
def holding(model: nn.Module, tensors: Mapping[int, Tensor]) -> Iterator[None]:
    """Context in which a model's modules hold other parameters and buffers; afterwards those that they had, no others.

    `torch.func.functional_call` goes by names, and leaves a module that has two of them with the others for good.

    Args:
        model: in any mode.
        tensors: what is held in the place of a tensor, by the id of that; the rest stays.

    Example:
        >>> model = nn.Linear(3, 2)
        >>> with holding(model, {id(model.bias): torch.ones(2)}):
        ...     model(torch.zeros(1, 3)).tolist()
        [[1.0, 1.0]]
    """
    tables: list[dict[str, Any]] = [
        table for module in model.modules() for table in (module._parameters, module._buffers)
    ]
    before = [dict(table) for table in tables]
    try:
        for table in tables:
            table.update({name: tensors[id(old)] for name, old in table.items() if id(old) in tensors})
        yield
    finally:
        for table, entries in zip(tables, before, strict=True):
            table.clear()
            table.update(entries)


@contextmanager
def drawing(seed: int, tensors: Iterable[Tensor]) -> Iterator[None]:
    """Context in which a model's own code draws by the seed; afterwards PyTorch's generators are as they were.

    Args:
        seed: any whole number. tensors: of the model, whose devices draw.

    Example:
        >>> with drawing(3, []):
        ...     first = torch.rand(2)
        >>> with drawing(3, []):
        ...     print(torch.equal(torch.rand(2), first))
        True
    """
    devices = sorted({t.device.index for t in tensors if t.device.type == "cuda"})
    with torch.random.fork_rng(devices=devices):
        for generator in (torch.default_generator, *(torch.cuda.default_generators[at] for at in devices)):
            generator.manual_seed(seed % 2**63)
        yield


def _attributes(module: nn.Module) -> dict[str, tuple[Any, Any]]:
    """A module's own attributes, with what is in those that are containers."""
    return {
        name: (value, (value.copy() if value else ()) if type(value) in _CONTAINERS else None)
        for name, value in vars(module).items()
        if name not in _TENSORS
    }

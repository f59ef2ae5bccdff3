"""Put edited tensors into a module, so that it is the same class with smaller layers."""

from __future__ import annotations

import copy
from collections import OrderedDict
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any

from torch import Tensor, nn

from coreprune.model.tensors import tensors_of
from coreprune.surgery.attributes import Followed, attributes

__all__ = ["attributes", "install", "size", "spared_copy", "ties", "transaction"]

Holder = tuple[nn.Module, str]


def spared_copy(model: nn.Module, names: Iterable[str]) -> nn.Module:
    """A deep copy of a module that shares, instead of copies, the tensors named: those are about to be replaced."""
    own = tensors_of(model)
    known: dict[int, Any] = {id(own[name]): own[name] for name in names if name in own}
    for module in model.modules():  # which have many, mostly empty, and copying them step by step takes long
        known |= {
            id(table): OrderedDict() for table in vars(module).values() if type(table) is OrderedDict and not table
        }
    return copy.deepcopy(model, known)


def ties(model: nn.Module) -> dict[str, tuple[str, ...]]:
    """Names of one and the same parameter or buffer: the others, by the first.

    Example:
        >>> model = nn.Sequential(nn.Linear(3, 3), nn.Linear(3, 3))
        >>> model[1].weight = model[0].weight
        >>> ties(model)
        {'0.weight': ('1.weight',)}
    """
    names: dict[int, list[str]] = {}
    for name, tensor in tensors_of(model).items():
        names.setdefault(id(tensor), []).append(name)
    return {many[0]: tuple(many[1:]) for many in names.values() if len(many) > 1}


def size(model: nn.Module) -> tuple[int, int]:
    """Entries and bytes of the state dict's tensors, each counted once however many names it has.

    Example:
        >>> size(nn.Linear(3, 2))
        (8, 32)
    """
    again = {name for others in ties(model).values() for name in others}
    state = [tensor for name, tensor in model.state_dict().items() if name not in again and isinstance(tensor, Tensor)]
    return sum(t.numel() for t in state), sum(t.numel() * t.element_size() for t in state)


def install(model: nn.Module, tensors: Mapping[str, Tensor], followed: Iterable[Followed] = ()) -> None:
    """Replace parameters and buffers by name, and set the attributes that tell their sizes; all of it or nothing.

    A tensor that several modules share stays shared: all of them get the new one. The modules stay the same objects,
    with their hooks and their mode.

    Args:
        model: changed in place; as it was if anything is raised.
        tensors: new values; requires_grad and device are taken over from what goes.
        followed: further attributes, from `follow` on the dense network.
    """
    holders = _holders(model)
    with transaction(model):
        touched: dict[int, nn.Module] = {}
        for name, value in tensors.items():
            path, _, leaf = name.rpartition(".")
            for module, key, new in _replacements(model.get_submodule(path), leaf, value, holders):
                _put(module, key, new)
                touched[id(module)] = module
        for module in touched.values():
            for attribute, number in attributes(module).items():
                if getattr(module, attribute) != number:
                    setattr(module, attribute, number)
        for one in followed:
            _set(model.get_submodule(one.module), one.attribute, one.new)


@contextmanager
def transaction(model: nn.Module) -> Iterator[None]:
    """Put every parameter, buffer and attribute of every module back if anything is raised within.

    Values that are changed in place are not put back, only what the modules hold.

    Example:
        >>> model = nn.Linear(3, 2)
        >>> try:
        ...     with transaction(model):
        ...         model.in_features, model.weight = 5, nn.Parameter(model.weight[:1])
        ...         raise ValueError
        ... except ValueError:
        ...     print(model, model.weight.shape)
        Linear(in_features=3, out_features=2, bias=True) torch.Size([2, 3])
    """
    tables = ("_parameters", "_buffers", "_modules")
    before = [
        (module, dict(vars(module)), {table: dict(vars(module)[table]) for table in tables})
        for module in model.modules()
    ]
    try:
        yield
    except BaseException:
        for module, held, inside in before:
            vars(module).clear()
            vars(module).update(held)
            for table, entries in inside.items():
                held[table].clear()
                held[table].update(entries)
        raise


def _holders(model: nn.Module) -> dict[int, list[Holder]]:
    """The modules that hold each tensor, and under which name."""
    found: dict[int, list[Holder]] = {}
    for module in model.modules():
        for leaf, tensor in [*module._parameters.items(), *module._buffers.items()]:
            if tensor is not None:
                found.setdefault(id(tensor), []).append((module, leaf))
    return found


def _replacements(
    module: nn.Module, leaf: str, value: Tensor, holders: Mapping[int, list[Holder]]
) -> Iterator[tuple[nn.Module, str, Tensor]]:
    """Where the new tensor has to go: everywhere the old one is."""
    old = module._buffers.get(leaf) if leaf in module._buffers else module._parameters.get(leaf)
    like = old if old is not None else next(module.parameters(recurse=False))
    new = value.detach().to(like.device)
    if leaf not in module._buffers:
        new = nn.Parameter(new, requires_grad=like.requires_grad)
    for holder, key in holders.get(id(old), [(module, leaf)]):
        yield holder, key, new


def _put(module: nn.Module, leaf: str, value: Tensor) -> None:
    if leaf in module._buffers:
        module._buffers[leaf] = value
    else:
        assert isinstance(value, nn.Parameter)
        module.register_parameter(leaf, value)


def _set(module: nn.Module, attribute: str, value: Any) -> None:
    """Set an attribute, or a field of an object, which the module then gets as its own."""
    first, *rest = attribute.split(".")
    if rest:
        own = copy.copy(getattr(module, first))
        (field,) = rest
        setattr(own, field, value)
        value = own
    setattr(module, first, value)

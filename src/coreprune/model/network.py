"""Discovery in any network: capture, carry labels, count."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor, nn

from coreprune.errors import InvalidInputError, UnsupportedModelError
from coreprune.model.capture import Captured, arguments, capture, first_line
from coreprune.model.census import Found, find
from coreprune.model.site import Inspection, Refusal
from coreprune.model.tensors import tensors_of
from coreprune.model.untouched import evaluating

__all__ = ["CAPTURES", "discover_network", "plain_module"]

#: ways to capture a network
CAPTURES = ("auto", "export", "blocks")

_OPAQUE = (nn.RNNBase, nn.RNNCellBase, nn.MultiheadAttention)


def plain_module(model: object) -> None:
    """Refuse what is no module that can be cut, saying what to pass instead.

    Raises:
        InvalidInputError: not a module. UnsupportedModelError: a wrapper, a script, quantised or complex weights.
    """
    if not isinstance(model, nn.Module):
        raise InvalidInputError(f"a torch.nn.Module was expected, but this is a {type(model).__name__}: pass the model")
    kind = type(model).__name__
    if isinstance(model, torch.jit.ScriptModule):
        raise UnsupportedModelError(f"{kind} is a TorchScript module, whose code is fixed: pass the Python module")
    if hasattr(model, "_orig_mod"):
        raise UnsupportedModelError("the model is wrapped by torch.compile: pass the module inside, model._orig_mod")
    wrappers = {"DistributedDataParallel", "DataParallel", "FullyShardedDataParallel", "DeepSpeedEngine"}
    for name, module in model.named_modules():
        what = type(module).__name__
        if what in wrappers or what.startswith("FSDP"):
            raise UnsupportedModelError(f"{name or 'the model'} is wrapped by {what}: pass the plain module inside it")
        if "quantized" in type(module).__module__ or what in {"Linear4bit", "Linear8bitLt", "QuantLinear"}:
            raise UnsupportedModelError(
                f"{name} is quantised ({what}): cut the network in floating point and quantise what is left"
            )
    for name, tensor in [*model.named_parameters(), *model.named_buffers()]:
        if nn.parameter.is_lazy(tensor):
            raise UnsupportedModelError(f"{name} has no shape yet (a lazy module): run the model once")
        if tensor.is_complex():
            raise UnsupportedModelError(f"{name} is complex: only real weights can be cut")


def discover_network(model: nn.Module, example_inputs: Any, how: str = "auto") -> Inspection:
    """Find every group of units of a network that can be cut.

    Args:
        model: any module; not changed.
        example_inputs: a tensor, a tuple of arguments or a dict of keyword arguments: one batch.
        how: "export" captures the whole model, "blocks" its submodules one by one where the whole cannot be
            captured, "auto" tries one and then the other.

    Raises:
        InvalidInputError: inputs that do not fit.
        UnsupportedModelError: no part can be captured, with the exporter's reason.
    """
    if how not in CAPTURES:
        raise InvalidInputError(f"capture={how!r} was asked: give 'auto', 'export' or 'blocks'")
    refused: list[Refusal] = []
    if how == "blocks":
        captures = list(_blocks(model, example_inputs, refused))
    else:
        try:
            captures = [capture(model, example_inputs, quick=how == "auto")]
        except UnsupportedModelError as error:
            if how == "export":
                raise UnsupportedModelError(
                    f"{error}: cut it block by block with capture='blocks', or rewrite what depends on values"
                ) from error
            refused.append(Refusal(type(model).__name__, str(error)))
            captures = list(_blocks(model, example_inputs, refused))
            if not captures:
                raise UnsupportedModelError(
                    f"{error}, and none of its blocks can be: rewrite what depends on values"
                ) from error
    tensors = tensors_of(model)
    shapes = {name: tuple(tensor.shape) for name, tensor in tensors.items()}
    state = model.state_dict()
    found = find(captures, shapes, state)
    _forbid(model, found)
    return Inspection(
        tuple(found.sites),
        (*refused, *found.refused),
        {name: tuple(tensor.shape) for name, tensor in state.items()},
        0,
        graphs=tuple(captures),
        taps=found.taps,
        makers=found.makers,
        aliases=_aliases(tensors),
    )


def _aliases(tensors: dict[str, Tensor]) -> dict[str, tuple[str, ...]]:
    """Names of one and the same tensor, by the first of them."""
    names: dict[int, list[str]] = {}
    for name, tensor in tensors.items():
        names.setdefault(id(tensor), []).append(name)
    return {many[0]: tuple(many[1:]) for many in names.values() if len(many) > 1}


def _blocks(model: nn.Module, example_inputs: Any, refused: list[Refusal]) -> Iterator[Captured]:
    """Captures of the largest submodules that can be captured, on the inputs that they get in one run."""
    args, kwargs = arguments(example_inputs)
    seen: dict[str, tuple[tuple[Any, ...], dict[str, Any]]] = {}
    twice: set[str] = set()
    hooks = []
    for name, module in model.named_modules():

        def watch(_: nn.Module, got: tuple[Any, ...], named: dict[str, Any], name: str = name) -> None:
            if name in seen:
                twice.add(name)
            seen[name] = (got, dict(named))

        if name:
            hooks.append(module.register_forward_pre_hook(watch, with_kwargs=True))
    try:
        with evaluating(model), torch.no_grad():
            model(*args, **kwargs)
    except Exception as error:
        raise InvalidInputError(
            f"{type(model).__name__} does not run on example_inputs ({first_line(error)}): "
            "pass one batch as the model takes it"
        ) from error
    finally:
        for hook in hooks:
            hook.remove()
    shared = _shared(model)
    yield from _captured(model, "", seen, twice, shared, refused)


def _shared(model: nn.Module) -> dict[int, set[str]]:
    """The modules that hold each parameter."""
    holders: dict[int, set[str]] = {}
    for name, parameter in model.named_parameters(remove_duplicate=False):
        holders.setdefault(id(parameter), set()).add(name.rpartition(".")[0])
    return holders


def _captured(
    model: nn.Module,
    path: str,
    seen: dict[str, Any],
    twice: set[str],
    shared: dict[int, set[str]],
    refused: list[Refusal],
) -> Iterator[Captured]:
    for name, child in model.named_children():
        full = f"{path}.{name}" if path else name
        within = all(
            all(holder == full or holder.startswith(f"{full}.") for holder in shared[id(p)]) for p in child.parameters()
        )
        if not any(True for _ in child.parameters()):
            continue
        if full in seen and full not in twice and within:
            try:
                yield capture(child, seen[full], path=full)
                continue
            except (UnsupportedModelError, InvalidInputError) as error:
                reason = f"cannot be captured ({first_line(error)})"
        else:
            reason = "is called more than once" if full in twice else "is never called, or shares its parameters"
        if any(True for _ in child.children()):
            yield from _captured(child, full, seen, twice, shared, refused)
        else:
            refused.append(Refusal(full, reason))


def _forbid(model: nn.Module, found: Found) -> None:
    """Take away the sites that touch modules whose classes fix their own sizes."""
    for path, module in model.named_modules():
        if not isinstance(module, _OPAQUE):
            continue
        prefix, reason = f"{path}." if path else "", f"is a {type(module).__name__}, whose class fixes its sizes"
        found.refused.append(Refusal(path or type(module).__name__, reason))
        for site in list(found.sites):
            if any(at.tensor.startswith(prefix) for at in site.locations if at.tensor):
                found.refuse(site, f"{path} {reason}")

"""Saved networks read again: on a fresh instance, strictly, every description compared with the others."""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from coreprune.errors import CheckpointError, InvalidInputError
from coreprune.io.checkpoint import read_tensors
from coreprune.io.sidecar import read_json
from coreprune.maths.layer import Coreset
from coreprune.model.site import Site
from coreprune.surgery.apply import attributes, install, ties
from coreprune.surgery.attributes import Followed, value_of

__all__ = ["FORMAT", "load", "plain", "read_claims", "read_structure", "state_of"]

FORMAT = 2


def state_of(model: nn.Module, names: Collection[str]) -> dict[str, Tensor]:
    """The tensors of the state dict, and those named that are not saved with it."""
    state = {name: tensor for name, tensor in model.state_dict().items() if isinstance(tensor, Tensor)}
    return state | {name: buffer for name, buffer in model.named_buffers() if name in names}


def plain(sizes: Mapping[str, Any]) -> dict[str, Any]:
    """Tuples as lists, as JSON has them."""
    return {name: list(value) if isinstance(value, tuple) else value for name, value in sizes.items()}


def read_claims(path: str | Path) -> dict[str, Coreset]:
    """The inverse of `Pruned.claims` for a saved network; the weights T are not kept and not needed.

    Raises:
        CheckpointError: the directory is not whole.
    """
    turned = Path(path) / "turned.safetensors"
    tensors = read_tensors(turned) if turned.exists() else {}
    claims: dict[str, Coreset] = {}
    try:
        for entry in read_structure(path)["sites"]:
            name, kept = entry["site"]["name"], torch.tensor(entry["kept"], dtype=torch.int64)
            incoming, shift = tensors.get(f"{name}/incoming"), tensors.get(f"{name}/shift")
            claims[name] = Coreset(kept, torch.ones(len(kept)), None, incoming, shift)
    except (KeyError, TypeError, ValueError) as error:
        raise CheckpointError(f"{path}/structure.json is damaged ({error!r}): write it again") from error
    return claims


def load(path: str | Path, make_model: Callable[[], nn.Module]) -> nn.Module:
    """Rebuild a saved network on a fresh instance, strictly.

    Args:
        path: a directory written by `Pruned.save`.
        make_model: makes the dense architecture, such as the class itself; its weights are overwritten.

    Returns:
        The instance with the smaller layers and the saved weights, in the mode the factory gave it.

    Raises:
        CheckpointError: the directory is not whole, or does not fit what the factory makes.
        InvalidInputError: `make_model` makes nothing.

    Example:
        >>> import coreprune as cp, tempfile
        >>> make = lambda: nn.Sequential(nn.Linear(4, 8), nn.ReLU(), nn.Linear(8, 2))
        >>> place = tempfile.mkdtemp() + "/small"
        >>> cp.prune(make(), units={"0": 3}).save(place)
        >>> load(place, make)[0].out_features
        3
    """
    structure = read_structure(path)
    tensors = read_tensors(Path(path) / "model.safetensors")
    if isinstance(make_model, nn.Module) or not callable(make_model):
        raise InvalidInputError(
            f"make_model is a {type(make_model).__name__}: give its class, or a function without arguments that "
            "returns the dense architecture, such as lambda: Net(width=64)"
        )
    model = make_model()
    if not isinstance(model, nn.Module):
        raise CheckpointError(f"make_model returned a {type(model).__name__}: give a function that returns the module")
    whole = _check(path, structure, tensors, model)
    state = state_of(model, structure["changed"])
    again = {name for others in ties(model).values() for name in others}
    fitting = {
        name: torch.empty_like(tensor)
        for name, tensor in whole.items()
        if name not in again
        and (name not in state or state[name].shape != tensor.shape or state[name].dtype != tensor.dtype)
    }
    install(model, fitting, _followed(path, structure, model))
    _check_sizes(path, structure, model)
    saved = model.state_dict()
    model.load_state_dict({name: tensor for name, tensor in whole.items() if name in saved}, strict=True)
    for name, buffer in model.named_buffers():
        if name in whole and name not in saved:
            buffer.copy_(whole[name])
    return model


def read_structure(path: str | Path) -> dict[str, Any]:
    """The structure.json of a saved network, its parts checked for their kind.

    Raises:
        CheckpointError: there is none, or it is damaged.
    """
    file = Path(path) / "structure.json"
    if Path(path).exists() and not file.exists():
        raise CheckpointError(
            f"{path} holds no structure.json, so that coreprune did not write it: give the directory that a smaller "
            "network was written to"
        )
    try:
        structure = {"aliases": {}, "changed": {}} | read_json(file, "structure", 1)
    except CheckpointError:
        structure = read_json(file, "structure", FORMAT)
    kinds = {
        "recipe": dict,
        "size": dict,
        "tensors": dict,
        "modules": dict,
        "sites": list,
        "aliases": dict,
        "changed": dict,
    }
    for part, kind in kinds.items():
        if not isinstance(structure.get(part), kind):
            raise CheckpointError(f"{path}/structure.json has no valid part {part!r}: write it again")
    return structure


def _check(
    path: str | Path, structure: dict[str, Any], tensors: Mapping[str, Tensor], model: nn.Module
) -> dict[str, Tensor]:
    """Compare the three descriptions: the JSON, the tensors, and what the factory made.

    Returns:
        The tensors, under all their names.
    """
    described = structure["tensors"]
    for name, tensor in tensors.items():
        if described.get(name) != [str(tensor.dtype).removeprefix("torch."), list(tensor.shape)]:
            raise CheckpointError(f"{path}: {name} in model.safetensors does not fit structure.json: write it again")
    missing = sorted(set(described) - set(tensors))
    if missing:
        raise CheckpointError(f"{path}: {missing[0]} is missing from model.safetensors: write it again")
    try:
        whole = {other: tensors[name] for name, others in structure["aliases"].items() for other in others}
        whole |= tensors
        state = state_of(model, structure["changed"])
        if structure["version"] == 1:
            structure["changed"] = _changed_before(structure, whole, state)
        _check_sites(path, structure, whole)
    except (KeyError, TypeError, ValueError, AttributeError, IndexError) as error:
        raise CheckpointError(f"{path}/structure.json is damaged ({error!r}): write it again") from error
    groups = [(name, *others) for name, others in structure["aliases"].items()]
    changed = {one: dense for name, dense in structure["changed"].items() for g in groups if name in g for one in g}
    _check_factory(path, structure["changed"] | changed, whole, state, ties(model))
    return whole


def _check_factory(
    path: str | Path,
    changed: Mapping[str, Any],
    whole: Mapping[str, Tensor],
    state: Mapping[str, Tensor],
    shared: Mapping[str, tuple[str, ...]],
) -> None:
    """What the factory made must be the dense network, name by name and size by size."""
    unknown = sorted(name for name in whole if name not in state and not (name in changed and changed[name] is None))
    absent = sorted(set(state) - set(whole))
    if unknown or absent:
        name = (unknown or absent)[0]
        where = "the saved network has" if unknown else "the fresh instance has"
        other = "the fresh instance has not" if unknown else "the saved network has not"
        raise CheckpointError(f"{where} {name}, which {other}: make_model must make the dense architecture")
    for name, dense in state.items():
        shape = list(whole[name].shape if changed.get(name) is None else changed[name])
        if list(dense.shape) != shape:
            raise CheckpointError(
                f"{name} is {tuple(shape)} in the network that {path} was cut from and {tuple(dense.shape)} in the "
                "fresh instance: make_model must make the dense architecture"
            )
    for name, others in shared.items():
        for other in others:
            one, two = whole.get(name), whole.get(other)
            if one is not None and two is not None and not (one.dtype == two.dtype and torch.equal(one, two)):
                raise CheckpointError(
                    f"{name} and {other} are one tensor in the fresh instance and two in {path}: "
                    "make_model must make the dense architecture"
                )


def _check_sites(path: str | Path, structure: Mapping[str, Any], whole: Mapping[str, Tensor]) -> None:
    """Every axis must have the entries of the dense one but those of the units that went, of all its sites."""
    changed = structure["changed"]
    expected = {name: list(shape) for name, shape in changed.items() if shape is not None}
    for site, kept in _sites(structure):
        for at in dict.fromkeys(site.locations):
            if changed.get(at.tensor) is not None:
                expected[at.tensor][at.axis] -= (site.units - kept) * at.span
    for name, shape in expected.items():
        if list(whole[name].shape) != shape:
            sites = ", ".join(f"{kept} units of {s.name}" for s, kept in _sites(structure) if name in _names(s))
            raise CheckpointError(
                f"{path}: {sites} were kept, so that {name} should be {tuple(shape)}, but it is "
                f"{tuple(whole[name].shape)}: write it again"
            )


def _changed_before(
    structure: Mapping[str, Any], whole: Mapping[str, Tensor], state: Mapping[str, Tensor]
) -> dict[str, list[int] | None]:
    """Dense shapes of the tensors that the cuts changed, which format 1 did not hold: there every site had its axes."""
    changed: dict[str, list[int] | None] = {}
    for site, _ in _sites(structure):
        for name in _names(site) & set(whole):
            changed[name] = list(whole[name].shape) if name in state else None
    for site, _ in _sites(structure):
        for at in site.locations:
            dense = changed.get(at.tensor)
            if dense is not None:
                dense[at.axis] = site.units * at.span
    return changed


def _sites(structure: Mapping[str, Any]) -> list[tuple[Site, int]]:
    """Sites and how many of their units were kept."""
    return [(Site.from_json(entry["site"]), len(entry["kept"])) for entry in structure["sites"]]


def _names(site: Site) -> set[str]:
    return {at.tensor for at in site.locations} | {reader.bias for reader in site.readers}


def _followed(path: str | Path, structure: Mapping[str, Any], model: nn.Module) -> list[Followed]:
    """The attributes to set, all of which the fresh instance must have, as numbers."""
    found: list[Followed] = []
    modules = dict(model.named_modules(remove_duplicate=False))
    for name, sizes in structure["modules"].items():
        module = modules.get(name)
        for attribute, new in sizes.items() if isinstance(sizes, dict) and module is not None else [("", None)]:
            if module is not None and attribute in attributes(module):
                continue
            old = None if module is None else value_of(module, attribute)
            if type(new) is not int or type(old) is not int or new <= 0:
                raise CheckpointError(
                    f"{path}/structure.json sets {attribute!r} of module {name!r} to {new!r}, where the fresh instance "
                    f"has {old!r}: make_model must make the dense architecture"
                )
            found.append(Followed(name, attribute, old, new))
    return found


def _check_sizes(path: str | Path, structure: Mapping[str, Any], model: nn.Module) -> None:
    """The sizes that the tensors tell must be those that were written down."""
    for name, sizes in structure["modules"].items():
        for attribute, value in plain(attributes(model.get_submodule(name))).items():
            if sizes.get(attribute, value) != value:
                raise CheckpointError(
                    f"{path}: {attribute} of {name} is {value} by model.safetensors and {sizes[attribute]} by "
                    "structure.json: write it again"
                )

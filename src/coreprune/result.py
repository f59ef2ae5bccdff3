"""A smaller network together with the evidence for it, and its life on disk."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from coreprune.errors import CheckpointError
from coreprune.io.checkpoint import read_tensors, write_tensors
from coreprune.io.directory import new_directory
from coreprune.io.sidecar import read_json, write_json
from coreprune.maths.layer import Coreset
from coreprune.model.site import Site
from coreprune.plan import Plan
from coreprune.report.text import summary
from coreprune.surgery.apply import attributes, install

__all__ = ["Pruned", "load", "read_claims", "read_structure"]

FORMAT = 1


@dataclass(frozen=True)
class Pruned:
    """The result of `prune` and `apply`.

    Attributes:
        model: the smaller network, a plain module of the same class as the dense one.
        plan: what was decided, with its evidence.
        dense_parameters: entries of the dense network's tensors.
        dense_bytes: bytes of the same.
    """

    model: nn.Module
    plan: Plan
    dense_parameters: int
    dense_bytes: int

    @property
    def parameters(self) -> int:
        """Entries of the smaller network's tensors."""
        return sum(tensor.numel() for tensor in self.model.state_dict().values())

    @property
    def bytes(self) -> int:
        """Bytes of the smaller network's tensors."""
        return sum(tensor.numel() * tensor.element_size() for tensor in self.model.state_dict().values())

    def claims(self) -> dict[str, Coreset]:
        """Which dense units, or combinations of them, the units of each cut site are."""
        return {cut.site.name: cut.coresets[0] for cut in self.plan.cuts}

    def summary(self) -> str:
        """Per site: units, method, domain and what is known of the error; the size before and after."""
        return summary(self.plan, self.dense_parameters, self.dense_bytes, self.parameters, self.bytes)

    def save(self, path: str | Path, *, force: bool = False) -> None:
        """Write model.safetensors and structure.json into a new directory, whole or not at all.

        Args:
            path: directory to make. force: replace one that is there.

        Raises:
            CheckpointError: it exists, or cannot be written.
        """
        state = self.model.state_dict()
        with new_directory(path, force=force) as draft:
            write_tensors(draft / "model.safetensors", state)
            turned = _turned(self.claims())
            if turned:
                write_tensors(draft / "turned.safetensors", turned)
            write_json(draft / "structure.json", "structure", FORMAT, self._structure(state))

    def _structure(self, state: Mapping[str, Tensor]) -> dict[str, Any]:
        changed = {at.tensor.rpartition(".")[0] for cut in self.plan.cuts for at in cut.site.locations}
        return {
            "recipe": dict(self.plan.recipe),
            "size": {
                "dense_parameters": self.dense_parameters,
                "dense_bytes": self.dense_bytes,
                "parameters": self.parameters,
                "bytes": self.bytes,
            },
            "tensors": {name: [str(t.dtype).removeprefix("torch."), list(t.shape)] for name, t in state.items()},
            "modules": {path: attributes(self.model.get_submodule(path)) for path in sorted(changed)},
            "sites": [
                {"site": cut.site.to_json(), "kept": cut.kept.tolist(), "evidence": dict(cut.evidence)}
                for cut in self.plan.cuts
            ],
        }


def _turned(claims: Mapping[str, Coreset]) -> dict[str, Tensor]:
    """Incoming combinations of the sites whose units are not units of the dense network."""
    tensors: dict[str, Tensor] = {}
    for name, coreset in claims.items():
        if coreset.incoming is not None and coreset.shift is not None:
            tensors |= {f"{name}/incoming": coreset.incoming, f"{name}/shift": coreset.shift}
    return tensors


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
    model = make_model()
    if not isinstance(model, nn.Module):
        raise CheckpointError(f"make_model returned a {type(model).__name__}: give a function that returns the module")
    _check(path, structure, tensors, model)
    state = model.state_dict()
    fitting = {
        name: tensor
        for name, tensor in tensors.items()
        if name not in state or state[name].shape != tensor.shape or state[name].dtype != tensor.dtype
    }
    install(model, {name: torch.empty_like(tensor) for name, tensor in fitting.items()})
    model.load_state_dict(tensors, strict=True)
    return model


def read_structure(path: str | Path) -> dict[str, Any]:
    """The structure.json of a saved network, its parts checked for their kind.

    Raises:
        CheckpointError: there is none, or it is damaged.
    """
    structure = read_json(Path(path) / "structure.json", "structure", FORMAT)
    kinds = {"recipe": dict, "size": dict, "tensors": dict, "modules": dict, "sites": list}
    for part, kind in kinds.items():
        if not isinstance(structure.get(part), kind):
            raise CheckpointError(f"{path}/structure.json has no valid part {part!r}: write it again")
    return structure


def _check(path: str | Path, structure: Mapping[str, Any], tensors: Mapping[str, Tensor], model: nn.Module) -> None:
    """Compare the three descriptions: the JSON, the tensors, and what the factory made."""
    described = structure.get("tensors", {})
    for name, tensor in tensors.items():
        if described.get(name) != [str(tensor.dtype).removeprefix("torch."), list(tensor.shape)]:
            raise CheckpointError(f"{path}: {name} in model.safetensors does not fit structure.json: write it again")
    missing = sorted(set(described) - set(tensors))
    if missing:
        raise CheckpointError(f"{path}: {missing[0]} is missing from model.safetensors: write it again")
    _check_sites(path, structure, tensors)
    state = model.state_dict()
    added = {f"{path}.bias" for path in structure["modules"]} | {"bias"}
    unknown = sorted(name for name in tensors if name not in state and name not in added)
    absent = sorted(set(state) - set(tensors))
    if unknown or absent:
        name = (unknown or absent)[0]
        where = "the saved network has" if unknown else "the fresh instance has"
        other = "the fresh instance has not" if unknown else "the saved network has not"
        raise CheckpointError(f"{where} {name}, which {other}: make_model must make the dense architecture")
    for name, tensor in tensors.items():
        dense = state.get(name)
        free = name.rpartition(".")[0] in structure["modules"]
        if dense is not None and dense.shape != tensor.shape and not (free and _fits(tensor, dense)):
            raise CheckpointError(
                f"{name} is {tuple(tensor.shape)} in {path} and {tuple(dense.shape)} in the fresh instance: "
                "make_model must make the dense architecture"
            )


def _check_sites(path: str | Path, structure: Mapping[str, Any], tensors: Mapping[str, Tensor]) -> None:
    """Every tensor must have as many units of a site as the structure says were kept."""
    try:
        for entry in structure["sites"]:
            site, kept = Site.from_json(entry["site"]), len(entry["kept"])
            for at in site.locations:
                found = tensors[at.tensor].shape[at.axis] if at.tensor in tensors else kept * at.span
                if found != kept * at.span:
                    raise CheckpointError(
                        f"{path}: {kept} units of {site.name} were kept, but {at.tensor} has {found}: write it again"
                    )
    except (KeyError, TypeError, ValueError, AttributeError, IndexError) as error:
        raise CheckpointError(f"{path}/structure.json is damaged ({error!r}): write it again") from error


def _fits(small: Tensor, dense: Tensor) -> bool:
    return small.dim() == dense.dim() and all(s <= d for s, d in zip(small.shape, dense.shape, strict=True))

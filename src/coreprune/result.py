"""A smaller network together with the evidence for it, and its life on disk."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from torch import Tensor, nn

from coreprune.clock import Timing
from coreprune.engine.verify import Verification
from coreprune.errors import InvalidInputError
from coreprune.io.checkpoint import write_tensors
from coreprune.io.configs import Followed as Configuration
from coreprune.io.configs import followed as described
from coreprune.io.directory import new_directory
from coreprune.io.sidecar import write_json
from coreprune.maths.layer import Coreset
from coreprune.plan import Plan
from coreprune.reading import FORMAT, load, plain, read_claims, read_structure, state_of
from coreprune.report.beside import Beside, beside_of
from coreprune.report.card import card
from coreprune.report.cost import Cost
from coreprune.report.notebook import repr_html
from coreprune.report.numbers import numbers
from coreprune.report.page import write
from coreprune.report.text import summary
from coreprune.surgery.apply import attributes, size, ties
from coreprune.surgery.attributes import Followed

__all__ = ["Pruned", "configured", "load", "read_claims", "read_structure"]


@dataclass(frozen=True, repr=False)
class Pruned:
    """The result of `prune` and `apply`.

    Attributes:
        model: the smaller network, a plain module of the same class as the dense one.
        plan: what was decided, with its evidence.
        dense_parameters: entries of the dense network's tensors, each counted once however many names it has.
        dense_bytes: bytes of the same.
        followed: attributes that were changed beside those that the tensors tell.
        configuration: for a model of `transformers`, the configuration that makes the smaller one, or why none does.
        timing: how long each stage took, in seconds and as shares; print it. No file holds it.

    Example:
        >>> import coreprune as cp
        >>> net = nn.Sequential(nn.Linear(4, 8), nn.ReLU(), nn.Linear(8, 2))
        >>> small = cp.prune(net, units={"0": 3})
        >>> small
        Pruned(Sequential, 58 -> 23 parameters)
        >>> small.model[0], small.bytes
        (Linear(in_features=4, out_features=3, bias=True), 92)
    """

    model: nn.Module
    plan: Plan
    dense_parameters: int
    dense_bytes: int
    followed: tuple[Followed, ...] = ()
    configuration: Configuration = field(default_factory=lambda: Configuration(None))
    timing: Timing = field(default_factory=Timing, compare=False)

    def __repr__(self) -> str:
        """The class of the network and its size; `summary` says more, and is what print shows."""
        return f"Pruned({type(self.model).__name__}, {self.dense_parameters:,} -> {self.parameters:,} parameters)"

    def __str__(self) -> str:
        """`summary`."""
        return self.summary()

    @property
    def parameters(self) -> int:
        """Entries of the smaller network's tensors."""
        return size(self.model)[0]

    @property
    def bytes(self) -> int:
        """Bytes of the smaller network's tensors."""
        return size(self.model)[1]

    def claims(self) -> dict[str, Coreset]:
        """Which dense units, or combinations of them, the units of each cut site are."""
        return {cut.site.name: cut.coresets[0] for cut in self.plan.cuts}

    def summary(self) -> str:
        """Per site: units, method, domain and what is known of the error; the size before and after."""
        return summary(self.plan, self.dense_parameters, self.dense_bytes, self.parameters, self.bytes)

    def _repr_html_(self) -> str:
        """What a notebook shows."""
        return repr_html(self.plan, (self.dense_parameters, self.dense_bytes), (self.parameters, self.bytes))

    def speed(
        self,
        dense: nn.Module,
        example_inputs: Any = None,
        *,
        runtimes: Iterable[str] = ("eager",),
        seconds: float = 2.0,
    ) -> Cost:
        """Run both networks, in turns: multiply-adds, time, and of causal language models tokens per second.

        Args:
            dense: the network that was cut.
            example_inputs: one batch to measure on; default inputs of the shapes that the plan was made with.
            runtimes: to time a forward pass in: see `report`.
            seconds: to spend on each thing that is timed.

        Returns:
            The numbers; print them, or look at them in a notebook.

        Example:
            >>> import coreprune as cp
            >>> net = nn.Sequential(nn.Linear(4, 8), nn.ReLU(), nn.Linear(8, 2))
            >>> cp.prune(net, units={"0": 3}).speed(net, seconds=0).multiply_adds
            Change(before=48, after=18)
        """
        beside = beside_of(dense, self.model, self.plan.recipe, example_inputs, seconds=seconds, runtimes=runtimes)
        assert beside.cost is not None
        return beside.cost

    def report(
        self,
        path: str | Path,
        dense: nn.Module | None = None,
        example_inputs: Any = None,
        *,
        checked: Verification | None = None,
        runtimes: Iterable[str] = ("eager",),
        force: bool = False,
    ) -> Path:
        """Write a page about the result, one HTML file that needs nothing else, and its numbers as JSON beside it.

        Args:
            path: of the page, such as report.html.
            dense: the network that was cut; with it multiply-adds are counted, time is measured and of language
                models tokens per second, and what could not be cut is listed.
            example_inputs: one batch to measure on; default inputs of the shapes that the plan was made with.
            checked: what `verify` found, to be reported too.
            runtimes: to time a forward pass in: "eager", "compile" (torch.compile), "onnx" (onnxruntime).
            force: replace a file that coreprune did not write.

        Returns:
            The path of the page.

        Raises:
            CheckpointError: a file is there that is no report, or the disk refuses.
            InvalidInputError: a runtime that is not known.
            CorepruneError: jinja2 is not installed.

        Example:
            >>> import coreprune as cp, tempfile
            >>> net = nn.Sequential(nn.Linear(4, 8), nn.ReLU(), nn.Linear(8, 2))
            >>> cp.prune(net, units={"0": 3}).report(tempfile.mkdtemp() + "/report.html").name
            'report.html'
        """
        beside = Beside()
        if dense is not None:
            beside = beside_of(dense, self.model, self.plan.recipe, example_inputs, checked=checked, runtimes=runtimes)
        elif checked is not None:
            beside = Beside(checked=(checked.statements(), checked.to_json()))
        return write(path, numbers(self._structure(self._tensors()), type(self.model).__name__, beside), force=force)

    def save(self, path: str | Path, *, force: bool = False) -> None:
        """Write model.safetensors and structure.json into a new directory, whole or not at all.

        Args:
            path: directory to make. force: replace one that is there.

        Raises:
            CheckpointError: it exists, or cannot be written.
        """
        state = self._tensors()
        with new_directory(path, force=force) as draft:
            write_tensors(draft / "model.safetensors", state)
            turned = _turned(self.claims())
            if turned:
                write_tensors(draft / "turned.safetensors", turned)
            write_json(draft / "structure.json", "structure", FORMAT, self._structure(state))

    def save_pretrained(self, path: str | Path, source: str | Path | None = None, *, force: bool = False) -> None:
        """Write a directory that ``from_pretrained`` opens, with structure.json beside the weights.

        Args:
            path: directory to make.
            source: the dense model's directory, whose tokenizer and preprocessor files are copied.
            force: replace one that is there.

        Raises:
            InvalidInputError: no configuration describes the widths, as where they differ from block to block.
            CheckpointError: it exists, or cannot be written.
        """
        from coreprune.io import huggingface

        known = self.configuration
        if known.config is None:
            raise InvalidInputError(
                f"no configuration of transformers describes the smaller network ({known.mismatch or 'it has none'}): "
                "cut with uniform='config', or use save() and coreprune.load"
            )

        def also(place: Path) -> None:
            structure = self._structure(self._tensors())
            write_json(place / "structure.json", "structure", FORMAT, structure)
            (place / "README.md").write_text(card(structure, type(self.model).__name__), encoding="utf-8")

        huggingface.save(path, self.model, known.config, source, zeros=known.zeros, force=force, also=also)

    def _tensors(self) -> dict[str, Tensor]:
        """What is stored: each tensor once, whatever names it has."""
        again = {name for others in ties(self.model).values() for name in others}
        return {name: tensor for name, tensor in state_of(self.model, self._changed()).items() if name not in again}

    def _changed(self) -> list[str]:
        """Names of the tensors that the cuts may have changed."""
        names = {at.tensor for cut in self.plan.cuts for at in cut.site.locations}
        names |= {reader.bias for cut in self.plan.cuts for reader in cut.site.readers}
        return sorted(name for name in names if name in state_of(self.model, names))

    def _structure(self, state: Mapping[str, Tensor]) -> dict[str, Any]:
        changed = self._changed()
        modules = {
            path: plain(attributes(self.model.get_submodule(path)))
            for path in sorted({name.rpartition(".")[0] for name in changed})
        }
        for one in self.followed:
            modules.setdefault(one.module, {})[one.attribute] = one.new
        return {
            "recipe": dict(self.plan.recipe),
            "size": {
                "dense_parameters": self.dense_parameters,
                "dense_bytes": self.dense_bytes,
                "parameters": self.parameters,
                "bytes": self.bytes,
            },
            "tensors": {name: [str(t.dtype).removeprefix("torch."), list(t.shape)] for name, t in state.items()},
            "aliases": {name: list(others) for name, others in ties(self.model).items()},
            "changed": {name: list(self.plan.shapes[name]) if name in self.plan.shapes else None for name in changed},
            "modules": modules,
            "sites": [
                {"site": cut.site.to_json(), "kept": cut.kept.tolist(), "evidence": dict(cut.evidence)}
                for cut in self.plan.cuts
            ],
        }


def configured(dense: nn.Module, small: nn.Module, plan: Plan) -> Configuration:
    """The configuration of `transformers` that makes the smaller network; without one, none."""
    config = getattr(dense, "config", None)
    if config is None or not type(config).__module__.startswith("transformers."):
        return Configuration(None)
    before, after = ({name: tuple(t.shape) for name, t in model.state_dict().items()} for model in (dense, small))
    changes = [(cut.site.name, cut.site.kind, cut.site.units, cut.kept.numel()) for cut in plan.cuts]
    return described(type(dense), config, before, after, changes)


def _turned(claims: Mapping[str, Coreset]) -> dict[str, Tensor]:
    """Incoming combinations of the sites whose units are not units of the dense network."""
    tensors: dict[str, Tensor] = {}
    for name, coreset in claims.items():
        if coreset.incoming is not None and coreset.shift is not None:
            tensors |= {f"{name}/incoming": coreset.incoming, f"{name}/shift": coreset.shift}
    return tensors

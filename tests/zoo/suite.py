"""Cut every network of the tables to half of every site, and look at all that must hold of the result.

    python -m zoo.suite [NAME ...] [--markdown FILE]          (with tests/ on the path)

prints a row for each network, and exits with 1 if anything does not hold.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
import traceback
import warnings
from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any
from unittest.mock import patch

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from torch.utils import _pytree as pytree

import coreprune as cp
from coreprune import api
from coreprune.errors import UnsupportedModelError
from coreprune.model.site import Inspection
from coreprune.model.untouched import evaluating
from coreprune.surgery.apply import ties
from zoo import families, handmade, pytorch_nets

TABLES = {"transformers": families.TABLE, "hand-made": handmade.TABLE, "torch.testing": pytorch_nets.TABLE}
NETS = {net.name: net for table in TABLES.values() for net in table}
TOLERANCE = 1e-9

#: networks without a site, and the words that their refusals must hold
WHOLE = {
    # GRN divides by a mean over the inner channels; LayerNorm reads the stream
    "convnextv2": ("summed up over its units (mean)", "normalised over all its units (layer_norm)"),
    "spatial-gate": ("summed up over its units (mean)",),
    # a unit is a row of one weight and a column of the same
    "autoencoder": ("both written and read along axis 0",),
    # the code holds the positions of the units, their order or the sizes of the parts
    "permutation": ("gathered",),
    "reversed": ("taken together (flip)",),
    "parts": ("split into unequal pieces at fixed places",),
    "softmax": ("taken together (softmax)",),
    "weight-norm": ("its weight is computed (a parametrisation, an adapter): merge or remove it first",),
    # no hidden layer but the LSTM's own
    "LSTMLinearModel": ("is an output of the network",),
    "LSTMLayerNormLinearModel": ("is an output of the network",),
}

#: kinds of sites that a reader of the code expects and that are refused: which, how many, and words of the reason
REFUSED = {
    # positions are gathered by distance, head by head
    "debertav2": ("heads", 2, "aten.gather"),
    # the code slices queries, keys and values at places that it computes from its configuration
    "phi3": ("heads", 2, "is cut at fixed places"),
    # the key and value that all heads share stand behind the queries, at a fixed place
    "falcon-one-key": ("heads", 2, ""),
    # head and projections hold one weight, along whose other axis the words run
    "opt-projected": ("embedding", 1, "is both written and read along axis 1"),
    # attention to the encoder adds a table of zeros, made for as many heads as the class was told
    "t5": ("heads", 1, "is combined with a tensor that is not cut"),
    "t5-gated": ("heads", 1, "is combined with a tensor that is not cut"),
}

#: sites of the networks without an `expect`
SITES = {
    "vgg": 3, "densenet": 4, "unet": 6, "inception": 5, "shufflenet": 2, "squeeze-excite": 2, "transposed": 2,
    "separable": 2, "padded by name": 1, "resnext": 1, "groupnorm": 1, "instancenorm": 1, "conv1d": 1, "conv3d": 1,
    "pixel-shuffle": 1,
    "one-channel": 2, "constant-channel": 3, "residual": 3, "residual-mlp": 3, "option-a": 1, "channels-last": 1,
    "glu": 1, "chunk-gate": 1, "swiglu": 1, "einsum": 2, "fused-attention": 1, "multihead": 1, "encoder-layer": 1,
    "called-twice": 1, "shared-weight": 1, "unused": 1, "two-by-two": 1, "dict-output": 1, "dataclass-output": 1,
    "model-output": 1, "hidden-output": 1, "functional": 2, "embedding-mlp": 2, "mean-over-sequence": 1, "scaled": 1,
    "lstm": 1, "SimpleLinear": 4, "LinearBias": 4, "LinearActivation": 4, "LinearActivationFunctional": 5,
    "SimpleConv2d": 3, "Conv2dBias": 4, "Conv2dActivation": 4, "Conv2dPadBias": 6, "Conv2dPool": 4,
    "Conv2dPoolFlatten": 4, "Conv2dPoolFlattenFunctional": 4,
}  # fmt: skip


@dataclass
class Row:
    """What was found of one network; bytes are those of the tensors' files."""

    name: str
    sites: dict[str, int] = field(default_factory=dict)
    refused: int = 0
    reason: str = ""
    removed: float = 0.0
    seconds: float = 0.0
    worst: float = 0.0
    before: int = 0
    after: int = 0
    failure: str = ""


class Loader:
    """A process of its own, which opens what was saved with factories of its own."""

    def __init__(self) -> None:
        self.process: subprocess.Popen[str] | None = None

    def outputs(self, name: str, place: Path) -> dict[str, Tensor]:
        """The outputs of a saved network, opened over there."""
        if self.process is None:
            path = os.pathsep.join([str(Path(__file__).parents[1]), os.environ.get("PYTHONPATH", "")])
            self.process = subprocess.Popen(
                [sys.executable, "-W", "ignore", "-m", "zoo.suite", "--serve"],
                stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, env={**os.environ, "PYTHONPATH": path},
            )  # fmt: skip
        assert self.process.stdin is not None
        assert self.process.stdout is not None
        print(json.dumps([name, str(place)]), file=self.process.stdin, flush=True)
        answer = self.process.stdout.readline()
        assert answer, "the process that opens networks has ended"
        assert not json.loads(answer), json.loads(answer)
        return load_file(place / "outputs.safetensors")

    def close(self) -> None:
        """End the process."""
        if self.process is not None:
            self.process.communicate()


def serve() -> None:
    """The other end of a `Loader`: a name and a place on each line of stdin, "" or an error on each of stdout."""
    answers, sys.stdout = sys.stdout, sys.stderr
    torch.set_num_threads(1)
    for line in sys.stdin:
        name, place = json.loads(line)
        try:
            net = NETS[name]
            model = cp.load(Path(place) / "small", net.make)
            save_file(numbered(run(model, net.inputs())), Path(place) / "outputs.safetensors")
            error = ""
        except Exception:
            error = traceback.format_exc()
        print(json.dumps(error), file=answers, flush=True)


def run(model: nn.Module, given: Any) -> Any:
    """The output, in eval mode."""
    args, kwargs = ((), given) if isinstance(given, dict) else (given, {})
    with evaluating(model), torch.no_grad():
        return model(*args, **kwargs)


def numbered(output: Any) -> dict[str, Tensor]:
    """Its tensors in order."""
    leaves = [leaf for leaf in pytree.tree_leaves(output) if isinstance(leaf, Tensor)]
    return {str(i): leaf.detach().clone().contiguous() for i, leaf in enumerate(leaves)}


def kinds(output: Any) -> Any:
    """Its structure, and what its leaves are."""
    leaves, structure = pytree.tree_flatten(output)
    return structure, [(leaf.shape, leaf.dtype) if isinstance(leaf, Tensor) else leaf for leaf in leaves]


def state(model: nn.Module) -> dict[str, Any]:
    """Everything that a cut must leave alone: which tensors there are, modes, hooks, plain attributes."""
    found: dict[str, Any] = {}
    for path, module in model.named_modules():
        plain = {k: v for k, v in vars(module).items() if isinstance(v, (bool, int, float, str, tuple))}
        hooks = [list(vars(module)[name]) for name in ("_forward_hooks", "_forward_pre_hooks")]
        tensors = [
            (k, id(t), None if t is None else (t.requires_grad, t.dtype, t.shape))
            for table in (module._parameters, module._buffers) for k, t in table.items()
        ]  # fmt: skip
        found[path] = (plain, hooks, tensors)
    return found


def values(model: nn.Module) -> dict[str, Tensor]:
    """Every tensor, once."""
    again = {name for others in ties(model).values() for name in others}
    return {k: t.detach().clone() for k, t in model.state_dict().items() if k not in again and isinstance(t, Tensor)}


def equal(one: Mapping[str, Tensor], other: Mapping[str, Tensor]) -> bool:
    """Whether all are the same, bit for bit."""
    return one.keys() == other.keys() and all(
        a.dtype == other[k].dtype and torch.equal(a.flatten().view(torch.uint8), other[k].flatten().view(torch.uint8))
        if a.dim()
        else bool(a == other[k])
        for k, a in one.items()
    )


def check_sites(name: str, expect: Mapping[str, int] | None, found: Inspection) -> None:
    """As many sites as were expected, and the known reasons where there are fewer."""
    reasons = [refusal.reason for refusal in found.refused]
    if name in WHOLE:
        assert not found.sites, f"{name} has sites now: take it out of WHOLE"
        for words in WHOLE[name]:
            assert any(words in reason for reason in reasons), f"{words!r} is no reason in {reasons}"
        return
    have = Counter(site.kind for site in found.sites)
    if expect is None:
        assert found.sites
        assert sum(have.values()) >= SITES[name], f"{sum(have.values())} sites, not {SITES[name]}"
        return
    maps = ("linear", "gated", "conv", "experts")
    wanted = {
        "heads": (expect.get("heads", 0), have["heads"]),
        "stream": (expect.get("stream", 0), have["residual"]),
        "embedding": (expect.get("embedding", 0), have["embedding"]),
        "maps": (
            sum(expect.get(k, 0) for k in ("ffn", "pooler", "squeeze", "conv", "experts")),
            sum(have[k] for k in maps),
        ),
    }
    fewer = {kind: want - got for kind, (want, got) in wanted.items() if got < want}
    kind, count, words = REFUSED.get(name, ("", 0, ""))
    assert fewer == ({kind: count} if count else {}), f"fewer sites than expected: {fewer}; there are {dict(have)}"
    assert any(words in reason for reason in reasons), f"{words!r} is no reason in {reasons}"


def examine(name: str, place: Path, loader: Loader) -> Row:
    """Cut one network by half, and assert all that must hold of the result.

    Args:
        name: of an entry of the tables. place: an empty directory. loader: opens what was saved.
    """
    net = NETS[name]
    model, given, calls = net.make(), net.inputs(), []
    model.register_forward_hook(lambda *_: calls.append(1))
    for i, module in enumerate(model.modules()):
        module.training = i % 2 == 0
    first = next(model.parameters())
    first.requires_grad_(False)
    output = run(model, given)  # first, since some classes install hooks of their own when they run
    before, weights = state(model), values(model)

    start = time.perf_counter()
    found = cp.inspect(model, given)
    reasons = Counter(refusal.reason for refusal in found.refused).most_common(1)
    row = Row(
        name, dict(Counter(site.kind for site in found.sites)), len(found.refused), reasons[0][0] if reasons else ""
    )
    check_sites(name, getattr(net, "expect", None), found)
    if not found.sites:
        row.seconds = time.perf_counter() - start
        with pytest.raises(UnsupportedModelError, match="no layer that can be cut") as refusal:
            cp.prune(model, given, remove={"*": 0.5}, prior="noise")
        assert all(words in str(refusal.value) for words in WHOLE[name])
        return row
    start = time.perf_counter()
    require, differences = api.require, []

    def measured(*given: Any) -> float:
        differences.append(require(*given))
        return differences[-1]

    with patch.object(api, "require", measured):
        small = cp.prune(model, given, remove={"*": 0.5}, prior="noise")
    row.seconds = time.perf_counter() - start
    (row.worst,) = differences
    row.removed = 1 - small.parameters / small.dense_parameters
    assert row.worst <= TOLERANCE
    assert list(small.plan.kept) == [site.name for site in found.sites]

    assert state(model) == before, "the dense network was changed"
    assert equal(values(model), weights), "the dense weights were changed"
    assert type(small.model) is type(model)
    assert [m.training for m in small.model.modules()] == [m.training for m in model.modules()]
    assert not next(small.model.parameters()).requires_grad
    count = len(calls)
    result = run(small.model, given)
    assert len(calls) == count + 1, "the hook is gone"
    assert kinds(result) == kinds(output), "the output has another structure"

    small.save(place / "small")
    save_file(weights, place / "dense.safetensors")
    row.before = (place / "dense.safetensors").stat().st_size
    row.after = (place / "small" / "model.safetensors").stat().st_size
    assert row.after < row.before
    assert equal(loader.outputs(name, place), numbered(result)), "opened elsewhere, it computes something else"
    return row


def shown(rows: Iterable[Row], *, markdown: bool = False) -> str:
    """The rows as a table."""
    head = ["network", "sites", "stays whole", "most frequent reason", "removed", "difference", "kB", "s"]
    lines = [head]
    for row in rows:
        sites = ", ".join(f"{count} {kind}" for kind, count in sorted(row.sites.items())) or "none"
        size = f"{row.before / 1000:.1f} → {row.after / 1000:.1f}" if row.after else ""
        number = [f"{row.removed:.0%}", f"{row.worst:.0e}"] if row.after else ["", ""]
        lines.append([row.name, sites, str(row.refused), row.reason, *number, size, f"{row.seconds:.1f}"])
    if markdown:
        lines.insert(1, ["---"] * len(head))
        return "\n".join("| " + " | ".join(cell.replace("|", "\\|") for cell in line) + " |" for line in lines)
    lines = [[*line[:3], line[3] if len(line[3]) < 24 else line[3][:21] + "…", *line[4:]] for line in lines]
    lines[0][2] = "whole"
    wide = [max(len(line[i]) for line in lines) for i in range(len(head))]
    return "\n".join(
        " ".join(
            cell.rjust(w) if i in {2, 4, 5, 6, 7} else cell.ljust(w)
            for i, (cell, w) in enumerate(zip(line, wide, strict=True))
        )
        for line in lines
    )


def main() -> int:
    """The whole table."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("names", nargs="*", metavar="NAME", help="networks to cut; default all")
    parser.add_argument("--markdown", type=Path, metavar="FILE", help="write the table there too")
    parser.add_argument("--serve", action="store_true", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.serve:
        serve()
        return 0
    unknown = sorted(set(options.names) - set(NETS))
    if unknown:
        parser.error(f"{unknown[0]!r} is not in the tables: {', '.join(NETS)}")
    warnings.simplefilter("ignore")
    os.environ.setdefault("TRANSFORMERS_VERBOSITY", "error")
    loader, rows = Loader(), []
    for name in options.names or NETS:
        with tempfile.TemporaryDirectory() as place:
            try:
                rows.append(examine(name, Path(place), loader))
            except Exception as error:
                rows.append(Row(name, failure=f"{type(error).__name__}: {error}"))
        if sys.stderr.isatty():
            print(f"\r{len(rows)} of {len(options.names or NETS)} {name}\033[K", end="\r", file=sys.stderr, flush=True)
    loader.close()
    print(shown(rows))
    if options.markdown:
        options.markdown.write_text(shown(rows, markdown=True) + "\n", encoding="utf-8")
    failures = [f"{row.name}: {row.failure}" for row in rows if row.failure]
    print(*failures, f"{len(rows)} networks, {len(failures)} failures", sep="\n")
    return 1 if failures else 0


if __name__ == "__main__":
    sys.exit(main())

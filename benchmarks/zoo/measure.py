"""One way to measure every pruner: a network in a fresh process, the seconds and the memory of one call.

A tool is a script that hands `main` a function from (model, example input) to the smaller model. For each
network it starts a process that imports the tool, prunes a tiny network once so that lazily loaded code is
not timed, builds the network with random weights, and only then starts the clock.

- seconds: wall time of the one call, with whatever tracing and checking it does.
- extra_mb: the largest resident set during the call, above the resident set with the network loaded. The
  kernel's high-water mark is reset just before, and memory that the allocator keeps from building the network
  is returned. A tool that leaves the original as it is pays for its copy here, one that works in place does not.
- load: processes that wanted a core in the last minute, this one among them; seconds say little if it is high.
- status: "ok" if the smaller network then maps the same input to 1,000 finite numbers; "failed" if the call
  raised, "broken" if the smaller network did, "timeout", or "killed" by a signal.
"""

from __future__ import annotations

import argparse
import ctypes
import gc
import importlib.metadata
import json
import os
import re
import resource
import signal
import subprocess
import sys
import time
import warnings
from collections import Counter
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

__all__ = ["CLASSES", "LARGEST", "LIMIT", "THREADS", "families", "line", "main", "models", "run", "save"]

Cut = Callable[[nn.Module, Tensor], nn.Module]
Describe = Callable[[nn.Module, Tensor], dict[str, Any]]

THREADS = 2
LIMIT = 120
CLASSES = 1000
#: parameters of the largest of timm's networks that are cut
LARGEST = 45_000_000
_GRACE = 240  # seconds for imports and building, on top of the limit


def zoo() -> Any:
    """The module torchvision.models, also where torchvision's compiled operators do not load.

    Importing torchvision registers shapes for two operators and fails if they are missing, as they are when
    it was built for another device than torch. No classification network uses them: their names are enough.
    """
    try:
        import torchvision.models
    except RuntimeError:
        for name in ("nms", "qnms"):
            torch.library.define(f"torchvision::{name}", "(Tensor dets, Tensor scores, float iou_threshold) -> Tensor")
        for name in [name for name in sys.modules if name.split(".")[0] == "torchvision"]:
            del sys.modules[name]
        import torchvision.models
    return torchvision.models


def models() -> list[str]:
    """Names of all classification networks of torchvision."""
    return sorted(zoo().list_models(module=zoo()))


def families() -> list[str]:
    """One network of every family of timm, the smallest, from small to large and up to LARGEST parameters.

    A family is a module of `timm.models`. To know their sizes every network of timm is built, without weights.
    """
    zoo()  # timm imports torchvision
    import timm
    from timm.models import model_entrypoint

    smallest: dict[str, tuple[int, str]] = {}
    for name in timm.list_models():
        with torch.device("meta"), warnings.catch_warnings():
            warnings.simplefilter("ignore")
            size = parameters(timm.create_model(name))
        family = model_entrypoint(name).__module__
        smallest[family] = min(smallest.get(family, (size, name)), (size, name))
    return [f"timm:{name}" for size, name in sorted(smallest.values()) if size <= LARGEST]


def build(name: str) -> tuple[nn.Module, Tensor]:
    """A network with random weights, ready for inference, and an example input; "timm:NAME" is one of timm's."""
    torch.manual_seed(0)
    if name.startswith("timm:"):
        zoo()  # timm imports torchvision
        import timm

        model = timm.create_model(name.removeprefix("timm:"), num_classes=CLASSES)
        return model.eval(), torch.randn(1, *model.pretrained_cfg["input_size"])
    auxiliary = {"aux_logits": False, "init_weights": True} if name in {"googlenet", "inception_v3"} else {}
    model = zoo().get_model(name, weights=None, **auxiliary)
    side = 299 if name == "inception_v3" else 224
    return model.eval(), torch.randn(1, 3, side, side)


def tiny() -> tuple[nn.Module, Tensor]:
    """A network to load everything with that a tool loads only when it is used."""
    layers = [nn.Conv2d(3, 8, 3), nn.BatchNorm2d(8), nn.ReLU(), nn.Conv2d(8, 8, 3), nn.BatchNorm2d(8), nn.ReLU()]
    model = nn.Sequential(*layers, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(8, CLASSES))
    return model.eval(), torch.randn(1, 3, 16, 16)


def resident(key: str) -> float:
    """Resident set of this process in MB: VmRSS is now, VmHWM the largest since it was last reset."""
    try:
        lines = Path("/proc/self/status").read_text().splitlines()
    except OSError:  # not Linux: the largest so far is all there is
        return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / (2**20 if sys.platform == "darwin" else 2**10)
    return next(int(line.split()[1]) for line in lines if line.startswith(key)) / 1024


def settle() -> None:
    """Give free memory back to the system and start a new high-water mark, where the system can do so."""
    gc.collect()
    with suppress(AttributeError, OSError):
        ctypes.CDLL(None).malloc_trim(0)
    with suppress(OSError):
        Path("/proc/self/clear_refs").write_text("5")


def parameters(model: nn.Module) -> int:
    """How many numbers the parameters of a network are."""
    return sum(parameter.numel() for parameter in model.parameters())


def said(error: BaseException) -> str:
    """An error on one line, without addresses of objects."""
    text = re.sub(r"0x[0-9a-f]+", "0x…", " ".join(f"{type(error).__name__}: {error}".split()))
    return text if len(text) <= 300 else text[:299] + "…"


def works(model: nn.Module, x: Tensor) -> str | None:
    """What is wrong with a network's answer, None if nothing is."""
    try:
        with torch.no_grad():
            y = model(x)
    except Exception as error:
        return said(error)
    if tuple(y.shape) != (len(x), CLASSES):
        return f"output of shape {tuple(y.shape)}"
    return None if bool(y.isfinite().all()) else "output not finite"


def one(name: str, cut: Cut, describe: Describe | None, limit: int, threads: int) -> dict[str, Any]:
    """Measure one call in this process, which does nothing else."""
    torch.set_num_threads(threads)
    warnings.simplefilter("ignore")
    try:
        cut(*tiny())
    except Exception as error:
        print(f"tiny network: {said(error)}", file=sys.stderr)
    model, x = build(name)
    row: dict[str, Any] = {"model": name, "parameters": parameters(model)}

    def late(*_: object) -> None:
        """Report and leave at once, since a tool may catch any exception."""
        print("\n" + json.dumps({**row, "status": "timeout", "seconds": limit}), flush=True)
        os._exit(0)

    signal.signal(signal.SIGALRM, late)
    signal.alarm(limit)
    settle()
    base = resident("VmRSS")
    small: nn.Module | None = None
    start = time.perf_counter()
    try:
        small = cut(model, x)
    except Exception as error:
        row |= {"status": "failed", "error": said(error)}
    row |= {
        "seconds": round(time.perf_counter() - start, 4),
        "loaded_mb": round(base, 1),
        "extra_mb": round(max(0.0, resident("VmHWM") - base), 1),
        "load": round(os.getloadavg()[0], 1),
    }
    signal.alarm(0)
    if small is not None:
        error = works(small, x)
        row |= {"status": "broken", "error": error} if error else {"status": "ok"}
        row["parameters_after"] = parameters(small)
    try:
        return row | (describe(model, x) if describe else {})
    except Exception as error:
        return row | {"describe_error": said(error)}


def run(script: Path, name: str, limit: int = LIMIT, threads: int = THREADS) -> dict[str, Any]:
    """The row of one network, measured by a tool's script in a process of its own."""
    command = [sys.executable, str(script), "--one", name, "--limit", str(limit), "--threads", str(threads)]
    pools = {f"{library}_NUM_THREADS": str(threads) for library in ("OMP", "MKL", "OPENBLAS")}
    try:
        done = subprocess.run(
            command, capture_output=True, text=True, check=False, timeout=limit + _GRACE, env={**os.environ, **pools}
        )
    except subprocess.TimeoutExpired:
        return {"model": name, "status": "timeout", "seconds": limit}
    try:
        return json.loads(done.stdout.splitlines()[-1])
    except (IndexError, ValueError):
        what = done.stderr.strip().splitlines()[-1:] or [f"signal {-done.returncode}"]
        return {"model": name, "status": "killed" if done.returncode < 0 else "failed", "error": what[0]}


def line(row: dict[str, Any]) -> str:
    """A row for people to follow a long run by."""
    removed = f"{1 - row['parameters_after'] / row['parameters']:.1%} removed" if "parameters_after" in row else ""
    took = f"{row['seconds']:.2f} s" if "seconds" in row else ""
    extra = f"{row['extra_mb']:.0f} MB extra" if "extra_mb" in row else ""
    return ", ".join(part for part in (row["status"], removed, took, extra, row.get("error", "")) if part)


def recorded(name: str) -> list[dict[str, Any]]:
    """The rows of benchmarks/results/NAME.json, if it is there."""
    path = Path(__file__).parents[1] / "results" / f"{name}.json"
    return json.loads(path.read_text())["rows"] if path.exists() else []


def save(name: str, packages: list[str], body: dict[str, Any]) -> None:
    """Write benchmarks/results/NAME.json."""
    sys.path.append(str(Path(__file__).parents[1]))
    from records import write_record

    versions = {package: importlib.metadata.version(package) for package in packages}
    write_record(name, {"versions": versions, **body})


def main(tool: str, package: str, script: str, cut: Cut, describe: Describe | None = None) -> None:
    """The command line of a tool: every network, or those named, one after the other."""
    parser = argparse.ArgumentParser(
        description=f"{tool} on classification networks with random weights, torchvision's all"
    )
    parser.add_argument("models", nargs="*", help="only these, without writing a record")
    parser.add_argument("--limit", type=int, default=LIMIT, help="seconds for one network (default: %(default)s)")
    parser.add_argument(
        "--threads", type=int, default=THREADS, help="1 where the cores are shared (default: %(default)s)"
    )
    parser.add_argument(
        "--missing", action="store_true", help="go on: only networks that the record has no row of, or one that failed"
    )
    parser.add_argument("--timm", action="store_true", help="one network of every family of timm in their place")
    parser.add_argument("--one", help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.one:
        row = one(args.one, cut, describe, args.limit, args.threads)
        print("\n" + json.dumps(row), flush=True)
        return
    torch.set_num_threads(args.threads)  # only for the record, which says it
    settings = {"limit": args.limit, "threads": args.threads}
    record, library = (f"zoo-{tool}-timm", "timm") if args.timm else (f"zoo-{tool}", "torchvision")
    known = {row["model"]: row for row in recorded(record) if row["status"] == "ok"} if args.missing else {}
    every = args.models or (families() if args.timm else models())
    for name in [name for name in every if name not in known]:
        known[name] = run(Path(script), name, args.limit, args.threads) | settings
        print(f"{name}: {line(known[name])}", flush=True)
        if not args.models:
            save(record, [package, library], {**settings, "rows": [known[one] for one in every if one in known]})
    counts = Counter(row["status"] for row in known.values())
    print(f"{tool}: " + ", ".join(f"{count} {status}" for status, count in counts.most_common()))

"""``coreprune info``."""

from __future__ import annotations

import importlib.metadata
import os
import platform
import re
from typing import Any

import click
import torch

from coreprune import __version__
from coreprune.cli.output import dumped, json_option
from coreprune.report.text import bytes_text, wrap

__all__ = ["info"]

_SHOWN = ("torch", "numpy", "scipy", "safetensors", "click", "rich", "transformers", "jinja2")


@click.command(short_help="Versions, this machine, and optional extras.")
@json_option
def info(as_json: bool) -> None:
    """Print versions, what this machine has, and which optional extras are there.

    Put it into a report of a defect. Nothing leaves the machine.

    \b
    Examples:
      coreprune info
      coreprune info --json
    """
    found = collected()
    if as_json:
        click.echo(dumped(found))
        return
    machine = found["machine"]
    memory = "" if machine["memory_bytes"] is None else f", {bytes_text(machine['memory_bytes'])} of memory"
    lines = [
        f"coreprune {found['coreprune']}, Python {found['python']}, {found['platform']}",
        ", ".join(f"{name} {version or 'not found'}" for name, version in found["versions"].items()),
        f"{machine['cpus']} processors{memory}, {machine['threads']} threads in torch",
        f"torch built for {machine['build']} with {machine['blas']}; "
        + (f"accelerators: {', '.join(machine['accelerators'])}" if machine["accelerators"] else "no accelerator"),
        *(f"extra {name}: {_words(extra)}" for name, extra in found["extras"].items()),
    ]
    click.echo("\n".join(line for text in lines for line in wrap(text)))


def collected() -> dict[str, Any]:
    """All that `coreprune info` prints, as plain data."""
    return {
        "coreprune": __version__,
        "python": platform.python_version(),
        "platform": platform.platform(),
        "versions": {name: _version(name) for name in _SHOWN},
        "machine": {
            "cpus": os.cpu_count(),
            "memory_bytes": _memory(),
            "threads": torch.get_num_threads(),
            "build": _build(),
            "blas": _blas(),
            "accelerators": _accelerators(),
        },
        "extras": {name: _extra(name) for name in _extras()},
    }


def _version(name: str) -> str | None:
    try:
        return importlib.metadata.version(name)
    except importlib.metadata.PackageNotFoundError:
        return None


def _extras() -> list[str]:
    """Names of the optional extras that the installed package declares."""
    try:
        return importlib.metadata.metadata("coreprune").get_all("Provides-Extra") or []
    except importlib.metadata.PackageNotFoundError:
        return []


def _extra(name: str) -> dict[str, Any]:
    """What an extra needs and which of it is missing, extras that it includes counted."""
    needed: list[str] = []
    waiting, seen = [name], set()
    while waiting:
        one = waiting.pop()
        seen.add(one)
        for line in importlib.metadata.requires("coreprune") or []:
            requirement, _, marker = line.partition(";")
            if not re.search(rf"extra\s*==\s*['\"]{re.escape(one)}['\"]", marker):
                continue
            match = re.match(r"\s*([\w.-]+)\s*(?:\[([^\]]*)\])?", requirement)
            assert match is not None
            if match[1] == "coreprune":
                waiting += [part.strip() for part in (match[2] or "").split(",") if part.strip() not in seen]
            else:
                needed.append(match[1])
    needed = sorted(set(needed))
    missing = [package for package in needed if _version(package) is None]
    return {"needs": needed, "missing": missing, "found": not missing}


def _words(extra: dict[str, Any]) -> str:
    return "found" if extra["found"] else f"not found, missing {', '.join(extra['missing'])}"


def _memory() -> int | None:
    try:
        return os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    except (AttributeError, OSError, ValueError):
        return None


def _build() -> str:
    if torch.version.cuda:
        return f"CUDA {torch.version.cuda}"
    return f"ROCm {torch.version.hip}" if torch.version.hip else "CPU"


def _blas() -> str:
    found = re.search(r"BLAS_INFO=(\w+)", torch.__config__.show())
    return found[1] if found else "an unknown BLAS"


def _accelerators() -> list[str]:
    found = [torch.cuda.get_device_name(i) for i in range(torch.cuda.device_count())]
    return found + (["mps"] if torch.backends.mps.is_available() else [])

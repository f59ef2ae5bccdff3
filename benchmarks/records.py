"""Where results go, and what every record says of the run that made it."""

from __future__ import annotations

import json
import platform
import subprocess
from collections.abc import Mapping
from datetime import datetime, timezone
from pathlib import Path
from typing import Any

import torch

import coreprune

__all__ = ["commit", "read_record", "results", "write_record"]


def results() -> Path:
    """The folder of tables, figures and records, made if it is not there."""
    folder = Path(__file__).parent / "results"
    folder.mkdir(exist_ok=True)
    return folder


def commit() -> str:
    """The commit that the working tree stands on."""
    found = subprocess.run(
        ["git", "rev-parse", "--short", "HEAD"], capture_output=True, text=True, cwd=Path(__file__).parent, check=False
    )
    return found.stdout.strip()


def read_record(name: str) -> dict[str, Any]:
    """What a record says; empty where there is none yet."""
    file = results() / f"{name}.json"
    body: dict[str, Any] = json.loads(file.read_text()) if file.exists() else {}
    return body


def write_record(name: str, body: Mapping[str, Any]) -> None:
    """Write body as JSON, with versions, commit, machine and date."""
    about = {
        "date": datetime.now(timezone.utc).strftime("%Y-%m-%d"),
        "commit": commit(),
        "coreprune": coreprune.__version__,
        "torch": torch.__version__,
        "python": platform.python_version(),
        "machine": platform.machine(),
        "threads": torch.get_num_threads(),
    }
    draft = results() / f".{name}.json"
    draft.write_text(json.dumps({"about": about, **body}, indent=1) + "\n")
    draft.replace(results() / f"{name}.json")  # at once, so that a run that is stopped leaves the old one or the new

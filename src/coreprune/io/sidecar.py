"""The JSON beside the tensors, with a kind and a version that are checked when it is read."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from coreprune.errors import CheckpointError

__all__ = ["read_json", "write_json"]


def write_json(path: str | Path, kind: str, version: int, body: Mapping[str, Any]) -> None:
    """Write `body` under its kind and format version, as text that does not depend on the order of anything."""
    try:
        Path(path).write_text(json.dumps({"kind": kind, "version": version, **body}, indent=1) + "\n")
    except OSError as error:
        raise CheckpointError(f"cannot write {path} ({error.strerror}): make room or choose another place") from error


def read_json(path: str | Path, kind: str, version: int) -> dict[str, Any]:
    """Read what `write_json` wrote.

    Raises:
        CheckpointError: no such file, not JSON, of another kind, or of a later version.
    """
    try:
        body = json.loads(Path(path).read_text())
    except OSError as error:
        raise CheckpointError(f"cannot read {path} ({error.strerror}): check the path") from error
    except (ValueError, RecursionError) as error:
        raise CheckpointError(f"{path} is not valid JSON ({error}): write it again") from error
    if not isinstance(body, dict) or body.get("kind") != kind:
        raise CheckpointError(f"{path} is not a {kind} written by coreprune: check the path")
    if body.get("version") != version:
        raise CheckpointError(
            f"{path} is a {kind} of format {body.get('version')}, and this coreprune reads format {version}: "
            "use the release that wrote it, or write it again"
        )
    return body

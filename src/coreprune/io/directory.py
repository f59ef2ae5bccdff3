"""Directories that appear whole or not at all."""

from __future__ import annotations

import os
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from coreprune.errors import CheckpointError

__all__ = ["check_new", "new_directory"]


def check_new(path: str | Path, *, force: bool = False) -> None:
    """What `new_directory` refuses before anything is written, for those who want to know before the work.

    Raises:
        CheckpointError: something is there that is not to be replaced, or the place is inside a file.
    """
    target = Path(path)
    if target.exists() and not force:
        raise CheckpointError(f"{target} exists already: give another name, or force=True to replace it")
    if target.exists() and not _ours(target):
        raise CheckpointError(f"{target} was not written by coreprune, so it is not replaced: give another name")
    above = next((one for one in target.parents if one.exists()), None)
    if above is not None and not above.is_dir():
        raise CheckpointError(f"{target} cannot be made, as {above} is a file: give another name")


@contextmanager
def new_directory(path: str | Path, *, force: bool = False) -> Iterator[Path]:
    """Write into a temporary directory beside `path` and rename it when everything is written.

    Args:
        path: the directory to make.
        force: replace a directory that is there. The old one goes only when the new one is whole.

    Yields:
        The temporary directory to write into.

    Raises:
        CheckpointError: the directory exists, or the disk refuses (full, read-only, …); then nothing is left behind.
    """
    target = Path(path)
    check_new(target, force=force)
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        draft = Path(tempfile.mkdtemp(prefix=f".{target.name}.", dir=target.parent))
    except OSError as error:
        raise CheckpointError(
            f"cannot write {target} ({error.strerror}): choose a place that can be written"
        ) from error
    try:
        yield draft
        draft.chmod(0o777 & ~_umask())
        for file in draft.iterdir():
            file.chmod((0o777 if file.is_dir() else 0o666) & ~_umask())
        if target.exists():
            _exchange(draft, target)
        else:
            draft.rename(target)
    except OSError as error:
        raise CheckpointError(
            f"cannot write {target} ({error.strerror or error}): nothing was written, make room or choose another place"
        ) from error
    finally:
        shutil.rmtree(draft, ignore_errors=True)


def _ours(target: Path) -> bool:
    """Whether a directory is empty or holds what coreprune writes."""
    if not target.is_dir():
        return False
    inside = {file.name for file in target.iterdir()}
    return not inside or "structure.json" in inside or "plan.json" in inside


def _exchange(draft: Path, target: Path) -> None:
    """Put the new directory in place of the old one, or leave the old one as it was, wherever one is stopped."""
    old = draft.with_name(draft.name + ".old")
    try:
        target.rename(old)
        draft.rename(target)
    finally:
        if old.exists() and not target.exists():  # stopped between the two
            old.rename(target)
        try:
            shutil.rmtree(old, ignore_errors=True)
        finally:
            shutil.rmtree(old, ignore_errors=True)  # the rest of it, had that been stopped


def _umask() -> int:
    mask = os.umask(0)
    os.umask(mask)
    return mask

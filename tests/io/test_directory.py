"""A directory appears whole or not at all."""

from __future__ import annotations

import errno
import shutil
from pathlib import Path

import pytest
from helpers import snapshot

from coreprune.errors import CheckpointError
from coreprune.io.directory import new_directory


def write(path, text="new", **options):
    with new_directory(path, **options) as draft:
        (draft / "file").write_text(text)
        assert text == "new" or not Path(path).exists()


def fail(path, error, **options):
    """Break off when half is written."""
    with new_directory(path, **options) as draft:
        (draft / "file").write_text("half")
        raise error


def test_appears_with_its_content_and_nothing_beside_it(tmp_path):
    write(tmp_path / "a" / "b")
    assert snapshot(tmp_path) == {"a": None, "a/b": None, "a/b/file": b"new"}


def test_is_not_there_before_it_is_whole(tmp_path):
    with new_directory(tmp_path / "a") as draft:
        assert not (tmp_path / "a").exists()
        assert draft.parent == tmp_path


def test_nothing_is_left_after_an_error(tmp_path):
    with pytest.raises(ZeroDivisionError):
        fail(tmp_path / "a", error=ZeroDivisionError)
    assert snapshot(tmp_path) == {}


def test_nothing_is_left_after_an_interruption(tmp_path):
    with pytest.raises(KeyboardInterrupt):
        fail(tmp_path / "a", error=KeyboardInterrupt)
    assert snapshot(tmp_path) == {}


def test_a_disk_error_becomes_ours(tmp_path):
    with pytest.raises(CheckpointError, match="No space left"), new_directory(tmp_path / "a"):
        raise OSError(errno.ENOSPC, "No space left on device")
    assert snapshot(tmp_path) == {}


def test_an_existing_directory_is_kept(tmp_path):
    write(tmp_path / "a")
    before = snapshot(tmp_path)
    with pytest.raises(CheckpointError, match="force"):
        write(tmp_path / "a")
    assert snapshot(tmp_path) == before


def test_force_replaces_all_of_it(tmp_path):
    write(tmp_path / "a")
    (tmp_path / "a" / "stale").write_text("old")
    (tmp_path / "a" / "plan.json").write_text("{}")
    with new_directory(tmp_path / "a", force=True) as draft:
        (draft / "file").write_text("newer")
    assert snapshot(tmp_path) == {"a": None, "a/file": b"newer"}


def test_force_keeps_the_old_one_if_writing_fails(tmp_path):
    write(tmp_path / "a")
    before = snapshot(tmp_path)
    with pytest.raises(CheckpointError):
        fail(tmp_path / "a", force=True, error=OSError(errno.ENOSPC, "No space left on device"))
    assert snapshot(tmp_path) == before


def test_force_keeps_the_old_one_if_the_last_step_fails(tmp_path, monkeypatch):
    write(tmp_path / "a")
    before = snapshot(tmp_path)
    rename, target = Path.rename, tmp_path / "a"

    def refuse(self, to):
        if Path(to) == target and self.name.endswith(".old") is False:
            raise OSError(errno.EIO, "Input/output error")
        return rename(self, to)

    monkeypatch.setattr(Path, "rename", refuse)
    with pytest.raises(CheckpointError), new_directory(target, force=True) as draft:
        (draft / "file").write_text("newer")
    assert snapshot(tmp_path) == before


@pytest.mark.parametrize("after", [False, True], ids=["before", "after"])
@pytest.mark.parametrize("step", [1, 2, 3], ids=["old away", "new in place", "old removed"])
@pytest.mark.parametrize("stop", [KeyboardInterrupt, SystemExit, OSError])
def test_stopped_anywhere_in_the_exchange_one_of_the_two_is_whole(tmp_path, monkeypatch, step, after, stop):
    """Stopped right before or right after each of the three steps: the old one or the new one, whole, and no other."""
    write(tmp_path / "a")
    (tmp_path / "a" / "structure.json").write_text("{}")
    before = snapshot(tmp_path)
    rename, rmtree, taken = Path.rename, shutil.rmtree, []

    def stopping(do):
        def wrapped(*words, **options):
            taken.append(do)
            if after:
                do(*words, **options)
            if len(taken) == step:
                raise stop
            return None if after else do(*words, **options)

        return wrapped

    monkeypatch.setattr(Path, "rename", stopping(rename))
    monkeypatch.setattr(shutil, "rmtree", stopping(rmtree))
    with pytest.raises((stop, CheckpointError)), new_directory(tmp_path / "a", force=True) as draft:
        (draft / "file").write_text("newer")
    whole = {"a": None, "a/file": b"newer"}
    found = snapshot(tmp_path)  # with nothing beside it
    assert found in (before, whole)
    assert (found == whole) == ((step, after) not in {(1, False), (1, True), (2, False)})


def test_a_file_is_never_replaced(tmp_path):
    (tmp_path / "a").write_text("precious")
    with pytest.raises(CheckpointError, match="file"):
        write(tmp_path / "a", force=True)
    assert (tmp_path / "a").read_text() == "precious"


def test_a_parent_that_is_a_file(tmp_path):
    (tmp_path / "a").write_text("precious")
    with pytest.raises(CheckpointError):
        write(tmp_path / "a" / "b")
    assert snapshot(tmp_path) == {"a": b"precious"}

from __future__ import annotations

import pytest

from coreprune.errors import CheckpointError
from coreprune.io.sidecar import read_json, write_json


def test_what_is_written_is_read(tmp_path):
    body = {"a": [1, 2.5, None, True], "ü": {"b": "ß"}}
    write_json(tmp_path / "x.json", "thing", 3, body)
    assert read_json(tmp_path / "x.json", "thing", 3) == {"kind": "thing", "version": 3, **body}


@pytest.mark.parametrize(
    "text",
    [
        b"", b"{", b"[]", b"3", b"null", b'{"kind": "other", "version": 1}', b'{"kind": "thing", "version": 2}',
        b'{"kind": "thing"}', b"\xff\xfe\x00", b"[" * 100_000,
    ],
    ids=lambda t: str(t[:30]),
)  # fmt: skip
def test_anything_else_is_refused(tmp_path, text):
    (tmp_path / "x.json").write_bytes(text)
    with pytest.raises(CheckpointError, match=r"x\.json"):
        read_json(tmp_path / "x.json", "thing", 1)


def test_missing_file(tmp_path):
    with pytest.raises(CheckpointError):
        read_json(tmp_path / "x.json", "thing", 1)


def test_a_place_that_cannot_be_written(tmp_path):
    with pytest.raises(CheckpointError):
        write_json(tmp_path / "no" / "x.json", "thing", 1, {})

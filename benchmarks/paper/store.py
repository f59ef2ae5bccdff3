"""Records that grow a row at a time, so that a run that was stopped goes on where it was."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from typing import Any

from records import commit, read_record, write_record

__all__ = ["Row", "Store"]

Row = dict[str, Any]


class Store:
    """The rows of one record, each under a key that says what was asked: plain data, and no commit or date.

    A row holds its key, the commit it was measured on, and what was measured.

    Args:
        name: of the record, benchmarks/results/<name>.json.
    """

    def __init__(self, name: str) -> None:
        self.name = name
        self._rows: dict[str, Row] = {_text(row["key"]): row for row in read_record(name).get("rows", [])}

    def missing(self, keys: Iterable[Mapping[str, Any]]) -> list[Mapping[str, Any]]:
        """Those of the keys that have no row yet."""
        return [key for key in keys if _text(key) not in self._rows]

    def put(self, key: Mapping[str, Any], measured: Mapping[str, Any]) -> Row:
        """Add a row, or replace the one of the same key, and write the record."""
        row = {"key": dict(key), **measured, "commit": commit()}
        self._rows[_text(key)] = row
        self.write()
        return row

    def get(self, key: Mapping[str, Any]) -> Row:
        """The row of a key."""
        return self._rows[_text(key)]

    def keep(self, keys: Iterable[Mapping[str, Any]]) -> list[Row]:
        """The rows of these keys, in this order; all others leave the record."""
        kept = {_text(key): self._rows[_text(key)] for key in keys}
        if list(kept) != list(self._rows):
            self._rows = kept
            self.write()
        return list(self._rows.values())

    def write(self) -> None:
        """Write the record."""
        write_record(self.name, {"rows": list(self._rows.values())})


def _text(key: Mapping[str, Any]) -> str:
    """A key as text, the same whatever the order of its entries."""
    return json.dumps(key, sort_keys=True)

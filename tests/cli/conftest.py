"""Commands run in an empty directory, within this process."""

from __future__ import annotations

import sys

import pytest

from coreprune.cli.log import LOG
from coreprune.cli.main import main


@pytest.fixture
def command(tmp_path, monkeypatch, capfd):
    """Runs a command in an empty directory: exit code, stdout, stderr."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", [*sys.path])
    handlers, level, propagate = LOG.handlers, LOG.level, LOG.propagate

    def call(*words):
        monkeypatch.setattr(sys, "argv", ["coreprune", *map(str, words)])
        capfd.readouterr()
        try:
            main()
            code = 0
        except SystemExit as leave:
            code = leave.code or 0
        return code, *capfd.readouterr()

    yield call
    LOG.handlers, LOG.propagate = handlers, propagate
    LOG.setLevel(level)

"""Put every deliberate fault of `faults.py` into a copy of the package, and see that a test fails.

    python tests/mutations.py             # all faults; writes docs/mutations.md
    python tests/mutations.py NAME …      # those whose file, function or words hold NAME; writes nothing

It lives beside the tests because it is about them: a fault that survives is a test that is missing. The working tree is
never touched. Heavy libraries are loaded once, and every fault is tried in a process that is forked from there (so: not on
Windows), on the tests that the fault names, until the first fails. Only an assertion or exception in a test itself counts,
not one while tests are collected. Before all faults the same tests must pass on the package as it is.
"""

from __future__ import annotations

import ast
import contextlib
import multiprocessing
import os
import shutil
import sys
import tempfile
import time
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

from faults import FAULTS, Fault

ROOT = Path(__file__).parent.parent
PACKAGE = ROOT / "src" / "coreprune"
PAGE = ROOT / "docs" / "mutations.md"
SECONDS = 300  # for the tests of one fault; ten times as long for all tests without one
PRELOADED = "ignore::pytest.PytestAssertRewriteWarning"

HEAD = """# Deliberate faults

A test that never fails proves nothing. Each row is a mistake put into a copy of one function that the rest is trusted on:
moments, replacement, bounds, certificates, edits, the check after every cut, the correction of BatchNorms. Beside it, the test that
failed first. `make mutations` makes this page; `tests/faults.py` has every fault word by word, and a test of the
ordinary suite holds that each still fits the source.

"""


def segment(source: str, function: str) -> tuple[int, int]:
    """Where a function or property is in a source, from its first character to its last."""
    body: Any = ast.parse(source).body
    node: Any = None
    for name in function.split("."):
        node = next(one for one in body if getattr(one, "name", None) == name)
        body = node.body
    lines = source.splitlines(keepends=True)
    return sum(map(len, lines[: node.lineno - 1])), sum(map(len, lines[: node.end_lineno]))


def faulty(source: str, fault: Fault) -> str:
    """A source with the fault; the fragment must occur once in the function."""
    start, end = segment(source, fault.function)
    inside = source[start:end]
    assert inside.count(fault.old) == 1, (
        f"{fault.file}, {fault.function}: {fault.old!r} occurs {inside.count(fault.old)} times"
    )
    return source[:start] + inside.replace(fault.old, fault.new) + source[end:]


class _First:
    """A pytest plugin that remembers the first test that fails, and counts those that pass."""

    def __init__(self) -> None:
        self.failed, self.passed = "", 0

    def pytest_runtest_logreport(self, report: Any) -> None:
        """Of the test itself, not of what goes before or after it."""
        if report.when == "call" and report.failed and not self.failed:
            self.failed = report.nodeid
        self.passed += report.when == "call" and report.passed


def _run(source: Path, tests: tuple[str, ...], answer: Connection) -> None:
    """In a process of its own: the tests on the package below `source`."""
    import pytest

    os.chdir(ROOT)
    log = os.open(source.parent / "log", os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
    os.dup2(log, 1)
    os.dup2(log, 2)
    sys.path[:0] = [str(source), str(ROOT / "tests")]
    sys.modules.pop("faults", None)
    plugin = _First()
    options = ["-x", "-q", "--tb=line", "-p", "no:cacheprovider", "-p", "no:xdist", "-o", "addopts=", "-W", PRELOADED]
    with contextlib.suppress(SystemExit):
        pytest.main([*options, *tests], plugins=[plugin])
    import coreprune

    own = Path(coreprune.__file__).is_relative_to(source)
    answer.send((plugin.failed, plugin.passed, own))
    answer.close()
    os._exit(0)


def tried(source: Path, tests: tuple[str, ...], seconds: float = SECONDS) -> tuple[str, int, bool]:
    """The test that failed first or "", how many passed, and whether all ended in time on the package below `source`."""
    ours, theirs = multiprocessing.get_context("fork").Pipe(duplex=False)
    process = multiprocessing.get_context("fork").Process(target=_run, args=(source, tests, theirs))
    process.start()
    theirs.close()
    try:
        if not ours.poll(seconds):
            return "", 0, False
        return ours.recv()  # type: ignore[no-any-return]
    except EOFError:
        return "", 0, False
    finally:
        process.kill()
        process.join()


def preload() -> None:
    """What all tests need and no fault changes, loaded once."""
    os.environ |= {"OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1", "PYTHONDONTWRITEBYTECODE": "1"}
    sys.dont_write_bytecode = True
    import hypothesis  # noqa: F401
    import mpmath  # noqa: F401
    import numpy as np  # noqa: F401
    import pytest  # noqa: F401
    import safetensors.torch  # noqa: F401
    import scipy.integrate
    import scipy.optimize
    import scipy.special
    import scipy.stats  # noqa: F401
    import torch
    import torch.export
    import torch.fx
    from torch.utils import flop_counter  # noqa: F401

    torch.set_num_threads(1)


def named(test: str) -> str:
    """A test as the table has it: file and function, without parameters."""
    file, *names = test.split("[", maxsplit=1)[0].split("::")
    return f"`{Path(file).name}`: {'.'.join(names)}"


def page(rows: list[tuple[Fault, str]]) -> str:
    """The table in Markdown."""
    lines = [f"{len(rows)} faults, {sum(bool(test) for _, test in rows)} caught.\n"]
    lines += ["| file | function | fault | caught by |", "|---|---|---|---|"]
    for fault, test in rows:
        what = fault.what.replace("|", "\\|")
        lines.append(f"| `{fault.file}` | `{fault.function}` | {what} | {named(test) if test else '**nothing**'} |")
    return HEAD + "\n".join(lines) + "\n"


def main() -> None:
    """All faults, or those that are named; exits 1 if one survives."""
    words = sys.argv[1:]
    faults = [f for f in FAULTS if not words or any(w in f"{f.file} {f.function} {f.what}" for w in words)]
    preload()
    start, rows = time.monotonic(), []
    with tempfile.TemporaryDirectory() as folder:
        source = Path(folder) / "src"
        copy = source / "coreprune"
        shutil.copytree(PACKAGE, copy, ignore=shutil.ignore_patterns("__pycache__"))
        if not words:
            tests = tuple(dict.fromkeys(test for fault in faults for test in fault.tests))
            failed, passed, own = tried(source, tests, 10 * SECONDS)
            if failed or not passed or not own:
                log = (Path(folder) / "log").read_text(errors="replace")[-3000:]
                sys.exit(f"the tests do not pass without a fault ({failed or 'they did not end'})\n{log}")
            sys.stdout.write(f"without a fault: {passed} tests pass, {time.monotonic() - start:.0f} s\n")
        for number, fault in enumerate(faults, 1):
            began, text = time.monotonic(), (copy / fault.file).read_text(encoding="utf-8")
            (copy / fault.file).write_text(faulty(text, fault), encoding="utf-8")
            failed, passed, own = tried(source, fault.tests)
            (copy / fault.file).write_text(text, encoding="utf-8")
            ran = f"{time.monotonic() - began:.1f} s"
            if not failed and not (passed and own):
                log = (Path(folder) / "log").read_text(errors="replace")[-3000:]
                sys.exit(f"{fault.file}, {fault.function}: the tests did not run to their end\n{log}")
            rows.append((fault, failed))
            verdict = named(failed) if failed else "SURVIVES"
            sys.stdout.write(f"{number}/{len(faults)} {fault.file} {fault.function}, {fault.what}: {verdict} ({ran})\n")
            sys.stdout.flush()
    alive = [fault for fault, test in rows if not test]
    sys.stdout.write(f"{len(rows)} faults, {len(alive)} survive, {time.monotonic() - start:.0f} s\n")
    if not words:
        PAGE.write_text(page(rows), encoding="utf-8")
    sys.exit(1 if alive else 0)


if __name__ == "__main__":
    main()

"""The documentation speaks of what is there: public names, functions and tests that it names, figures that are generated."""

from __future__ import annotations

import ast
import doctest
import importlib
import inspect
import re
import shutil
from pathlib import Path

import pytest
import torch

import coreprune as cp
from coreprune.cli.main import STOPPED, cli

ROOT = Path(__file__).parents[1]
DOCS = ROOT / "docs"
PAGES = sorted(DOCS.glob("*.md"))
SOURCE = Path(cp.__file__).parent
NAMES = sorted(cp.__all__)


def text(page):
    return (DOCS / page).read_text(encoding="utf-8")


def documented(name):
    """The object whose docstring says what a public name is: that of its entries for a table."""
    found = getattr(cp, name)
    return type(next(iter(found.values()))) if isinstance(found, dict) else found


@pytest.mark.parametrize("name", NAMES)
def test_every_public_name_is_in_the_reference(name):
    described = {line.rsplit(".", 1)[-1] for page in PAGES for line in re.findall(r"^::: (\S+)", text(page), re.M)}
    assert name in described
    assert re.search(rf"coreprune\.([\w.]+\.)?{name}\b", text("api.md"))


def shown():
    """Everything that the reference shows, by its full name, but for errors, which say themselves when they come."""
    names = {line for page in PAGES for line in re.findall(r"^::: (\S+)", text(page), re.M)}
    found = {}
    for name in sorted(names):
        module, _, last = name.rpartition(".")
        found[name] = getattr(importlib.import_module(module), last)
    return {name: one for name, one in found.items() if not isinstance(one, dict) and ".errors." not in name}


@pytest.mark.parametrize("name", shown())
def test_everything_in_the_reference_has_an_example_that_is_run(name):
    words = inspect.getdoc(shown()[name]) or ""
    assert "\nExample:\n" in words
    assert doctest.DocTestParser().get_examples(words)


@pytest.mark.parametrize("name", NAMES)
def test_every_public_name_has_an_example_that_is_run(name):
    found = documented(name)
    words = inspect.getdoc(found) or ""
    assert "\nExample:\n" in words
    assert doctest.DocTestParser().get_examples(words)
    file = Path(inspect.getsourcefile(found))
    assert SOURCE in file.parents  # where pytest collects doctests


def members(name):
    """Functions that the reference shows of a public name: itself, or the public methods of a class."""
    found = documented(name)
    own = [found] if inspect.isfunction(found) else [v for k, v in vars(found).items() if k[0] != "_"]
    return [one for one in own if inspect.isfunction(one)]


@pytest.mark.parametrize("name", NAMES)
def test_the_reference_can_read_every_parameter(name):
    """A line of its own for each, as the documentation's reader of docstrings takes what stands before the colon."""
    for function in members(name):
        part = re.search(r"\nArgs:\n((?:    .*\n|\n)+)", (inspect.getdoc(function) or "") + "\n")
        described = re.findall(r"^    (\S[^:]*):", part[1], re.M) if part else []
        assert set(described) <= set(inspect.signature(function).parameters), function.__qualname__


def defined(file):
    """Names of functions, classes and methods of a Python file."""
    kinds = ast.FunctionDef | ast.ClassDef
    return {node.name for node in ast.walk(ast.parse(file.read_text())) if isinstance(node, kinds)}


#: a file in backquotes, and the names in backquotes behind a colon after it
REFERENCE = re.compile(r"`((?:tests/)?[\w/]+\.py)`(?:: ((?:`[\w.]+`(?:, )?)+))?")


def references(page):
    """Files of the package or its tests that a page names, with the names that it says are in them."""
    found, folder = [], ""
    for path, names in REFERENCE.findall(text(page)):
        folder = path.rsplit("/", 1)[0] if "/" in path else folder
        found.append((path if "/" in path else f"{folder}/{path}", tuple(re.findall(r"`([\w.]+)`", names))))
    return found


def test_functions_and_tests_named_as_evidence_exist():
    found = references("guarantee.md")
    assert len(found) > 15
    for path, names in found:
        file = ROOT / path if path.startswith("tests/") else SOURCE / path
        assert file.exists(), path
        assert set(names) <= defined(file), (path, names)


def test_every_guarantee_names_a_function_and_a_test():
    rows = [line.split("|") for line in text("guarantee.md").splitlines() if re.match(r"\| \d", line)]
    assert len(rows) == 5
    for row in rows:
        assert re.search(r"`\w+/\w+\.py`: `\w+`", row[4]), row
        named = re.findall(r"`tests/\w+/\w+\.py`(: `test_\w+`)?", row[5])
        assert named
        assert all(named), row


def test_the_command_line_page_has_every_command_and_exit_code():
    page = text("cli.md")
    for name in cli.commands:
        assert f"\n## {name}\n" in page, name
    for code in ("0", "1", "2", "130", "143"):
        assert f"| {code} |" in page
    assert "nothing half-written is left" in page
    assert "nothing half-written is left" in STOPPED


def options(command):
    return {word for param in command.params for word in param.opts if word.startswith("--")}


def test_the_command_line_page_names_no_option_that_is_not_there():
    known = {word for command in cli.commands.values() for word in options(command)} | {"--version", "--help"}
    for word in re.findall(r"(?<![\w-])--[a-z][\w-]*", text("cli.md")):
        assert word in known, word


def test_the_scoreboard_is_what_its_records_say(monkeypatch):
    monkeypatch.syspath_prepend(str(ROOT / "benchmarks" / "zoo"))
    import scoreboard

    assert scoreboard.page() == text("scoreboard.md")


def rewritten(tmp_path, monkeypatch, *, demo):
    """The published pages as `benchmarks/publish.py` writes them from the records."""
    import publish

    (tmp_path / "docs" / "figures").mkdir(parents=True)
    shutil.copy(ROOT / "README.md", tmp_path)
    for name in ("results.md", "methods.md", "paper.md"):
        shutil.copy(DOCS / name, tmp_path / "docs")
    monkeypatch.setattr(publish, "DOCS", tmp_path / "docs")
    if not demo:
        monkeypatch.setattr(publish, "_demo", lambda pages: None)
    monkeypatch.setattr("sys.argv", ["publish.py"])
    publish.main()
    return tmp_path


def test_the_results_are_those_of_the_records(tmp_path, monkeypatch):
    written = rewritten(tmp_path, monkeypatch, demo=False)
    for page in ("results.md", "paper.md"):
        assert (written / "docs" / page).read_text() == text(page)
    for figure in (written / "docs" / "figures").iterdir():
        assert figure.read_bytes() == (DOCS / "figures" / figure.name).read_bytes(), figure.name


def test_the_tables_of_the_demonstration_are_those_it_makes(tmp_path, monkeypatch):
    before = torch.get_num_threads()
    written = rewritten(tmp_path, monkeypatch, demo=True)
    torch.set_num_threads(before)
    assert (written / "README.md").read_text() == (ROOT / "README.md").read_text()
    assert (written / "docs" / "methods.md").read_text() == text("methods.md")

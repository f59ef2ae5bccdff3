"""The table of deliberate faults cannot rot: every fault still fits the source, every test is there, the page is of this table.

`make mutations` runs the faults themselves, which takes minutes.
"""

from __future__ import annotations

import ast
import re
from collections import Counter

import pytest
from faults import FAULTS, Fault
from mutations import PACKAGE, PAGE, ROOT, faulty, named, page, segment


@pytest.mark.parametrize("fault", FAULTS, ids=lambda f: f"{f.function}: {f.what}")
def test_every_fault_fits_the_source_once_and_changes_what_it_computes(fault: Fault):
    source = (PACKAGE / fault.file).read_text(encoding="utf-8")
    changed = ast.dump(ast.parse(faulty(source, fault)))
    assert changed != ast.dump(ast.parse(source))


@pytest.mark.parametrize("test", sorted({test for fault in FAULTS for test in fault.tests}))
def test_every_named_test_is_there(test: str):
    file, *names = test.split("::")
    text = (ROOT / file).read_text(encoding="utf-8")
    assert all(re.search(rf"^\s*(def|class) {name}\b", text, re.MULTILINE) for name in names)


def test_there_are_faults_enough_of_every_trusted_kind():
    counts = Counter(fault.file.split("/")[0] for fault in FAULTS)
    assert len(FAULTS) >= 40 and set(counts) >= {"maths", "surgery", "engine", "model"}
    assert len({(f.file, f.function, f.old, f.new) for f in FAULTS}) == len(FAULTS)


def test_the_page_is_of_this_table_and_nothing_survives():
    text = PAGE.read_text(encoding="utf-8")
    rows = [line for line in text.splitlines() if line.startswith("| `")]
    assert [row.rsplit(" | ", 1)[0] for row in rows] == [
        row.rsplit(" | ", 1)[0]
        for row in page([(fault, "a::b") for fault in FAULTS]).splitlines()
        if row.startswith("| `")
    ]
    assert "**nothing**" not in text


def test_every_test_of_the_page_is_there():
    found = re.findall(r"\| `(test_\w+\.py)`: (\S+) \|$", PAGE.read_text(encoding="utf-8"), re.MULTILINE)
    assert len(found) == len(FAULTS)
    texts = {file.name: file.read_text(encoding="utf-8") for file in (ROOT / "tests").rglob("test_*.py")}
    assert [f"{file}: {name}" for file, name in found if f"def {name.split('.')[-1]}(" not in texts[file]] == []


# ---------------------------------------------------------------- the tool


def test_a_fragment_that_is_gone_or_there_twice_is_told():
    source = "def f(x):\n    return x + x\n\n\nclass A:\n    @property\n    def g(self):\n        return 2\n"
    start, end = segment(source, "A.g")
    assert source[start:end].strip() == "def g(self):\n        return 2"
    for old in ("y", "x"):
        with pytest.raises(AssertionError, match="occurs"):
            faulty(source, Fault("f.py", "f", old, "z", "", ()))
    assert faulty(source, Fault("f.py", "A.g", "2", "3", "", ())).endswith("return 3\n")


def test_a_fault_that_survives_stands_out_on_the_page():
    fault = Fault("maths/a.py", "f", "x", "y", "a or b | c", ())
    assert "| `maths/a.py` | `f` | a or b \\| c | **nothing** |" in page([(fault, "")])
    assert named("tests/maths/test_a.py::test_b[1-2]") == "`test_a.py`: test_b"
    assert named("tests/maths/test_a.py::TestC::test_b") == "`test_a.py`: TestC.test_b"

"""The rules of the house: maths is pure, imports go one way, one version number."""

from __future__ import annotations

import ast
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

import coreprune

SOURCE = Path(coreprune.__file__).parent
ROOT = SOURCE.parents[1]
LINT = Path(sys.executable).with_name("lint-imports")
needs_lint = pytest.mark.skipif(not LINT.exists(), reason="import-linter is not installed")
modules = pytest.mark.parametrize("file", sorted(SOURCE.rglob("*.py")), ids=lambda f: str(f.relative_to(SOURCE)))


def imported(file: Path) -> set[str]:
    """Dotted names of all that a file imports, wherever in it."""
    found: set[str] = set()
    for node in ast.walk(ast.parse(file.read_text())):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            found |= {f"{node.module}.{alias.name}" for alias in node.names}
    return found


@modules
def test_nothing_is_solved_by_lu(file):
    """PyTorch's LU of several matrices is wrong on several threads of a CPU (its issue 142815); all here are definite."""
    for node in ast.walk(ast.parse(file.read_text())):
        if isinstance(node, ast.Attribute):
            name = ast.unparse(node)
            assert not re.fullmatch(
                r"torch\.(linalg\.(solve|inv|det|slogdet|lu\w*|tensorinv)\w*|inverse|det|lu\w*)", name
            ) or (name == "torch.linalg.solve_triangular"), f"{file.name}:{node.lineno} uses {name}"


@pytest.mark.parametrize("file", sorted((SOURCE / "maths").glob("*.py")), ids=lambda f: f.name)
def test_maths_knows_neither_modules_nor_files_nor_logging(file):
    for name in imported(file):
        assert not re.match(r"torch\.nn\b|safetensors|logging|json|pathlib|os\b|io\b|random|numpy\.random", name)
    for node in ast.walk(ast.parse(file.read_text())):
        if isinstance(node, ast.Attribute) and isinstance(node.value, ast.Name) and node.value.id == "torch":
            assert node.attr not in {"nn", "save", "load", "manual_seed", "seed"}


@modules
def test_nothing_unpickles_or_sets_the_global_seed(file):
    for node in ast.walk(ast.parse(file.read_text())):
        if isinstance(node, ast.Call) and isinstance(node.func, ast.Attribute):
            owner = ast.unparse(node.func.value)
            assert (owner, node.func.attr) not in {("torch", "load"), ("torch", "save"), ("torch", "manual_seed")}
    assert not {name.split(".")[0] for name in imported(file)} & {"pickle", "dill", "joblib", "random"}


@modules
def test_no_file_is_too_long(file):
    assert len(file.read_text().splitlines()) <= 400


def test_errors_import_nothing():
    assert imported(SOURCE / "errors.py") <= {"__future__.annotations"}


def test_one_version_number():
    assert re.fullmatch(r"\d+\.\d+\.\d+", coreprune.__version__)
    files = [*SOURCE.rglob("*.py"), ROOT / "pyproject.toml"]
    holders = [f.name for f in files if re.search(r"^(__version__|version)\s*=", f.read_text(), re.MULTILINE)]
    assert holders == ["__init__.py"]


@pytest.fixture
def lint(tmp_path):
    """A copy of the package to spoil, and the linter over it."""
    shutil.copy(ROOT / "pyproject.toml", tmp_path)
    shutil.copytree(SOURCE, tmp_path / "src" / "coreprune", ignore=shutil.ignore_patterns("data", "__pycache__"))

    def run(file: str | None = None, line: str = "") -> tuple[int, str]:
        if file:
            with (tmp_path / "src" / "coreprune" / file).open("a") as stream:
                stream.write(f"\n{line}\n")
        env = os.environ | {"PYTHONPATH": str(tmp_path / "src")}
        done = subprocess.run([LINT, "--no-cache"], cwd=tmp_path, env=env, capture_output=True, text=True, check=False)
        return done.returncode, done.stdout

    return run


@needs_lint
def test_imports_go_one_way(lint):
    code, out = lint()
    assert code == 0, out


@needs_lint
@pytest.mark.parametrize(
    ("file", "line"),
    [
        ("maths/layer.py", "from coreprune import cli"),
        ("surgery/edits.py", "import coreprune.plan"),
        ("errors.py", "from coreprune.maths import layer"),
        ("maths/sampling.py", "import safetensors"),
        ("__init__.py", "from coreprune import testing"),
        ("cli/main.py", "from coreprune.testing import check_rule"),
        ("testing/common.py", "import pytest"),
    ],
    ids=lambda v: v,
)
def test_an_import_pointed_upwards_is_caught(lint, file, line):
    code, out = lint(file, line)
    assert code != 0
    assert "broken" in out.lower()

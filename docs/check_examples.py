"""Run every example of the README and of docs/, and compare what it prints with what is written below it.

    python docs/check_examples.py             # fails at the first example that does not print what it says
    python docs/check_examples.py --update    # write what they print now

The examples of one page run one after the other in one process, one namespace and one empty directory. A ``python``
block followed by a ``text`` block must print exactly that; one that is followed by anything else must
print nothing. A ``text`` block that begins with ``$ coreprune`` is a command line and what it prints; where nothing
is written below its commands they must do well, and may print what they like. Commands with a word in capitals, such
as ``MODEL``, are not run. The scripts of docs/notebooks/ are run too, each in an empty directory.
"""

from __future__ import annotations

import io
import os
import re
import shlex
import subprocess
import sys
from contextlib import redirect_stderr, redirect_stdout
from pathlib import Path
from tempfile import TemporaryDirectory

ROOT = Path(__file__).parent.parent
BLOCK = re.compile(
    r"^```python\n(?P<code>.*?)^```\n(?:\n```text\n(?!\$)(?P<printed>.*?)^```\n)?"
    r"|^```text\n(?P<commands>\$ coreprune .*?)^```\n",
    re.MULTILINE | re.DOTALL,
)


class Page:
    """The examples of one page, as they run."""

    def __init__(self, path: Path, *, update: bool) -> None:
        self.path, self.update = path, update
        self.count, self.space = 0, {"__name__": "__main__"}

    def example(self, match: re.Match[str]) -> str:
        """Run an example and return it with what it printed."""
        if match["commands"] is not None:
            return f"```text\n{''.join(self.command(*one) for one in commands(match['commands']))}```\n"
        self.count += 1
        printed = io.StringIO()
        with redirect_stdout(printed):
            exec(compile(match["code"], f"{self.path.name}, example {self.count}", "exec"), self.space)  # noqa: S102
        got = self.compared(lines(printed.getvalue()), match["printed"] or "")
        return f"```python\n{match['code']}```\n" + (f"\n```text\n{got}```\n" if got else "")

    def command(self, line: str, expected: str | None) -> str:
        """Run a command and return it with what it printed."""
        words = shlex.split(line)[1:]
        if any(word.isupper() and len(word) > 1 for word in words):
            return f"$ {line}\n{expected or ''}"
        self.count += 1
        code, printed = called(words)
        if expected is None and code:
            sys.exit(f"{self.path}: {line} leaves with {code} and says\n{printed}")
        return f"$ {line}\n" + (self.compared(lines(printed), expected) if expected is not None else "")

    def compared(self, got: str, expected: str) -> str:
        """What was printed, if it is what is written or is to be written now."""
        if got != expected and not self.update:
            sys.exit(f"{self.path}, example {self.count} prints\n{got}\nand not\n{expected}")
        return got


def lines(text: str) -> str:
    """Without blanks at the ends of lines."""
    return "\n".join(line.rstrip() for line in text.splitlines()) + "\n" if text else ""


def commands(block: str) -> list[tuple[str, str | None]]:
    """Commands and what is written below each; None for all of a block that shows commands alone."""
    parts = [part.partition("\n") for part in re.split(r"^\$ ", block, flags=re.MULTILINE)[1:]]
    silent = not any(printed for _, _, printed in parts)
    return [(line, None if silent else printed) for line, _, printed in parts]


def called(words: list[str]) -> tuple[int, str]:
    """The exit code of ``coreprune`` with these words, and all that it prints."""
    from coreprune.cli.main import main

    printed, before = io.StringIO(), sys.argv
    sys.argv = ["coreprune", *words]
    try:
        with redirect_stdout(printed), redirect_stderr(printed):
            main()
    except SystemExit as leave:
        return int(leave.code or 0), printed.getvalue()
    finally:
        sys.argv = before
    return 0, printed.getvalue()


def run(path: Path, *, update: bool) -> int:
    """Run the examples of a page and return how many there are."""
    text, page, here = path.read_text(encoding="utf-8"), Page(path, update=update), Path.cwd()
    with TemporaryDirectory() as folder:
        os.chdir(folder)
        try:
            new = BLOCK.sub(page.example, text)
        finally:
            os.chdir(here)
    if update and new != text:
        path.write_text(new, encoding="utf-8")
    return page.count


def script(path: Path) -> None:
    """Run a notebook that is a script, in a process and an empty directory of its own."""
    with TemporaryDirectory() as folder:
        if subprocess.run([sys.executable, str(path)], cwd=folder, stdout=subprocess.DEVNULL, check=False).returncode:  # noqa: S603
            sys.exit(f"{path} fails")
    sys.stdout.write(f"{path.name}: runs\n")


def main() -> None:
    """All pages and notebooks, or those that are named."""
    options = [name for name in sys.argv[1:] if name.startswith("--")]
    names = [Path(name).resolve() for name in sys.argv[1:] if name not in options]
    if len(names) == 1:
        if names[0].suffix == ".py":
            script(names[0])
            return
        count = run(names[0], update="--update" in options)
        sys.stdout.write(f"{names[0].name}: {count} examples\n")
        return
    pages = [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md")), *sorted((ROOT / "docs/notebooks").glob("*.py"))]
    for page in names or pages:
        if page.suffix == ".py" or BLOCK.search(page.read_text(encoding="utf-8")):
            command = [sys.executable, __file__, str(page), *options]
            if subprocess.run(command, check=False).returncode:  # noqa: S603
                sys.exit(1)


if __name__ == "__main__":
    main()

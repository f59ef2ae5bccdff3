"""Run every Python example of the README and of docs/, and compare what it prints with what is written below it.

    python docs/check_examples.py             # fails at the first example that does not print what it says
    python docs/check_examples.py --update    # write what they print now

The examples of one page run one after the other in one process, one namespace and one empty directory. A ``python``
block followed by a ``text`` block must print exactly that; one that is followed by anything else must
print nothing. A ``text`` block that begins with ``$`` is a command, not the output of an example.
"""

from __future__ import annotations

import io
import os
import re
import subprocess
import sys
from contextlib import redirect_stdout
from pathlib import Path
from tempfile import TemporaryDirectory

ROOT = Path(__file__).parent.parent
BLOCK = re.compile(r"^```python\n(.*?)^```\n(?:\n```text\n(?!\$)(.*?)^```\n)?", re.MULTILINE | re.DOTALL)


def run(page: Path, *, update: bool) -> int:
    """Run the examples of a page and return how many there are."""
    text, space, count = page.read_text(encoding="utf-8"), {"__name__": "__main__"}, 0

    def example(match: re.Match[str]) -> str:
        nonlocal count
        count += 1
        code, expected = match[1], match[2] or ""
        printed = io.StringIO()
        with redirect_stdout(printed):
            exec(compile(code, f"{page.name}, example {count}", "exec"), space)  # noqa: S102
        got = "\n".join(line.rstrip() for line in printed.getvalue().splitlines()) + "\n" if printed.getvalue() else ""
        if got != expected and not update:
            sys.exit(f"{page}, example {count} prints\n{got}\nand not\n{expected}")
        return f"```python\n{code}```\n" + (f"\n```text\n{got}```\n" if got else "")

    here = Path.cwd()
    with TemporaryDirectory() as folder:
        os.chdir(folder)
        try:
            new = BLOCK.sub(example, text)
        finally:
            os.chdir(here)
    if update and new != text:
        page.write_text(new, encoding="utf-8")
    return count


def main() -> None:
    """All pages, or those that are named."""
    options = [name for name in sys.argv[1:] if name.startswith("--")]
    names = [Path(name).resolve() for name in sys.argv[1:] if name not in options]
    if len(names) == 1:
        count = run(names[0], update="--update" in options)
        sys.stdout.write(f"{names[0].name}: {count} examples\n")
        return
    for page in names or [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))]:
        if "```python" in page.read_text(encoding="utf-8"):
            command = [sys.executable, __file__, str(page), *options]
            if subprocess.run(command, check=False).returncode:  # noqa: S603
                sys.exit(1)


if __name__ == "__main__":
    main()

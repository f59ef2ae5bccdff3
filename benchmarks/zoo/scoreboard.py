"""One table of both tools over all networks: docs/scoreboard.md from the records of ours.py, rival.py, speed.py.

python benchmarks/zoo/scoreboard.py
"""

from __future__ import annotations

import argparse
import json
from collections import Counter
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from measure import LARGEST

RESULTS = Path(__file__).parents[1] / "results"
PAGE = Path(__file__).parents[2] / "docs" / "scoreboard.md"

HEAD = ["network", "sites", "refused (most frequent reason)", "removed", "seconds", "equal"]

INTRODUCTION = """\
# Scoreboard

Every classification network of torchvision, with random weights, cut once by coreprune and once by
[Torch-Pruning](https://github.com/VainF/Torch-Pruning):

- **coreprune** removes half of the units of every *site*, without data. What it cannot cut it refuses, with a reason.
  The smaller network must equal the original with the removed units replaced as the plan says, or `prune` raises:
  that is the column *equal*. Heads whose number a module's own code fixes (Swin, MaxViT) are among the refused. Where it
  fixes another number, as of what it splits, the first error says what to ignore; the seconds then are of both calls.
- **Torch-Pruning** removes half of all channels by the L2 norm of each group, with the settings of its README and its
  own script for torchvision. It promises a network that runs, and *ok* says that the result maps the example to 1,000
  finite numbers.

Random weights say nothing about accuracy: this is about which networks can be cut, and by how much.
Seconds are of one call in a fresh process, imports and building of the network excluded.
"""


def read(name: str) -> dict[str, Any]:
    """A record, by the name of its file."""
    path = RESULTS / f"{name}.json"
    if not path.exists():
        raise SystemExit(f"{path.name} is not there: run ours.py and rival.py first, as `make test-zoo` does")
    return json.loads(path.read_text())


def removed(row: Mapping[str, Any]) -> str:
    """Share of the parameters that went, of a network that works."""
    return f"{1 - row['parameters_after'] / row['parameters']:.1%}" if row["status"] == "ok" else "–"


def seconds(row: Mapping[str, Any]) -> str:
    """Time of the call, however it ended."""
    if "seconds" not in row:
        return "–"
    return f"> {row['seconds']:.0f}" if row["status"] == "timeout" else f"{row['seconds']:.2f}"


def verdict(row: Mapping[str, Any]) -> str:
    """Yes, or how it failed."""
    if row["status"] == "ok":
        return "yes"
    return f"{row['status']}: {cell(row['error'], 60)}" if "error" in row else row["status"]


def cell(text: str, most: int = 90) -> str:
    """Text that fits into one cell of a table."""
    text = " ".join(text.split()).replace("|", "\\|")
    return text if len(text) <= most else text[: most - 1] + "…"


def refused(row: Mapping[str, Any]) -> str:
    """How many refusals, and the most frequent reason."""
    reasons = row.get("refused", {})
    if not reasons:
        return "0" if "refused" in row else "–"
    reason, count = next(iter(reasons.items()))
    return f"{sum(reasons.values())} ({count} × {cell(reason)})"


def table(head: Iterable[str], rows: Iterable[Iterable[str]]) -> str:
    """A table in Markdown."""
    head = list(head)
    lines = [head, ["---"] * len(head), *rows]
    return "\n".join("| " + " | ".join(line) + " |" for line in lines)


def conditions(record: Mapping[str, Any]) -> str:
    """What a record says of the run that made it."""
    about, versions = record["about"], record["versions"]
    packages = ", ".join(f"{name} {version}" for name, version in {"torch": about["torch"], **versions}.items())
    return f"{about['date']}, {packages}, {about['machine']}, threads: {record['threads']}, commit {about['commit']}"


def tally(rows: Iterable[Mapping[str, Any]]) -> str:
    """How many rows ended in which way."""
    return ", ".join(f"{count} {status}" for status, count in Counter(r["status"] for r in rows).most_common())


def speed() -> str:
    """The section of the paired run, nothing where it was not made."""
    if not (RESULTS / "zoo-speed.json").exists():
        return ""
    record = read("zoo-speed")
    rows = []
    for row in record["rows"]:
        ours, theirs = row["coreprune"], row["torch-pruning"]
        rows.append(
            [
                row["model"],
                *(f"{tool['seconds']['min']:.2f} / {tool['seconds']['median']:.2f}" for tool in (ours, theirs)),
                *(f"{tool['extra_mb']['min']:.0f} / {tool['extra_mb']['median']:.0f}" for tool in (ours, theirs)),
            ]
        )
    head = ["network", "coreprune, s", "Torch-Pruning, s", "coreprune, MB", "Torch-Pruning, MB"]
    return (
        "\n## Speed and memory\n\n"
        f"Least / median of {record['repeats']} calls, the tools taking turns. Memory is the largest resident set during the\n"
        "call, above that with the network loaded; coreprune leaves the original as it is, Torch-Pruning works in place.\n"
        f"`python benchmarks/zoo/speed.py`, {conditions(record)}.\n\n{table(head, rows)}\n"
    )


def cut(row: Mapping[str, Any]) -> list[str]:
    """What is said of coreprune's cut of one network."""
    sites = str(row.get("sites", "–"))
    return [row["model"].removeprefix("timm:"), sites, refused(row), removed(row), seconds(row), verdict(row)]


def timm() -> str:
    """The section of timm's families, nothing where they were not run."""
    if not (RESULTS / "zoo-coreprune-timm.json").exists():
        return ""
    record = read("zoo-coreprune-timm")
    return (
        "\n## Families of timm\n\n"
        f"The smallest network of every module of timm, up to {LARGEST // 10**6} million parameters, as above.\n"
        f"`python benchmarks/zoo/ours.py --timm`: {tally(record['rows'])}; {conditions(record)}.\n"
        f"A call that took longer than {limits(record)} s was ended, at a load of {loads(record)} on two cores.\n\n"
        f"{table(HEAD, map(cut, record['rows']))}\n"
    )


def limits(record: Mapping[str, Any]) -> str:
    """After how long calls were ended."""
    return " or ".join(str(one) for one in sorted({row.get("limit", record["limit"]) for row in record["rows"]}))


def loads(record: Mapping[str, Any]) -> str:
    """How busy the machine was."""
    found = [row["load"] for row in record["rows"] if "load" in row]
    return f"{min(found):.1f} to {max(found):.1f}"


def page() -> str:
    """Both records, joined."""
    ours, theirs = read("zoo-coreprune"), read("zoo-torch-pruning")
    rivals = {row["model"]: row for row in theirs["rows"]}
    head = [*HEAD, "Torch-Pruning: removed", "seconds", "ok"]
    rows = []
    for row in ours["rows"]:
        rival = rivals.get(row["model"], {"status": "not run"})
        rows.append([*cut(row), removed(rival), seconds(rival), verdict(rival)])
    return (
        f"{INTRODUCTION}{speed()}\n## All networks\n\n"
        f"- coreprune: {tally(ours['rows'])}; {conditions(ours)}.\n"
        f"- Torch-Pruning: {tally(theirs['rows'])}; {conditions(theirs)}.\n\n"
        f"A call that took longer than {limits(ours)} s (coreprune) or {limits(theirs)} s (Torch-Pruning) was ended; *killed* are calls that\n"
        f"had taken all the machine's memory. Other work shared the\n"
        f"machine, at a load of {loads(ours)} (coreprune) and {loads(theirs)} (Torch-Pruning) on two cores, so that these seconds say no more than\n"
        f"the order: speed is what the table above is for.\n\n{table(head, rows)}\n{timm()}"
    )


def main() -> None:
    """Write the page."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--strict", action="store_true", help="fail if coreprune did not cut every network")
    args = parser.parse_args()
    ours, theirs = read("zoo-coreprune"), read("zoo-torch-pruning")
    PAGE.write_text(page())
    print(f"coreprune: {tally(ours['rows'])}\nTorch-Pruning: {tally(theirs['rows'])}\n{PAGE.name} written")
    left = [row["model"] for row in ours["rows"] if row["status"] != "ok"]
    if args.strict and left:
        raise SystemExit(f"not cut: {', '.join(left)}")


if __name__ == "__main__":
    main()

"""The records of the paper's experiments as Markdown; every figure comes from a row."""

from __future__ import annotations

import math
import statistics
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

from paper.choice import TRAININGS
from paper.store import Row
from records import read_record

__all__ = [
    "choice",
    "cifar10",
    "curve",
    "edges",
    "introduction",
    "lenet5",
    "load",
    "recovery",
    "spoken",
    "table",
    "vgg",
]

AIM = 1.9  # per cent, beside the dense network's own error
CUT_ONLY, NOTHING = "none", "–"

#: part → what its table shows
INTRODUCTIONS = {
    "recovery": "MNIST test error in %, mean ± standard deviation over {seeds} of the dense network's training. What each start had to cut by, and "
    "what its network costs, is in the third table.",
    "choice": "Each schedule was tried on 55,000 training pictures and measured on the other 5,000, one seed; the best is in "
    "bold, and is what the tables above and below have.",
    "curve": "At the widths that `kernel` shares out by its own error curves, the same for all methods.",
    "edges": "The coreset of Baykal et al. ([arXiv:1804.05345](https://arxiv.org/abs/1804.05345)) draws single weights by their "
    "importance on a sample of pictures; the seed paper argues against that need of data. As many edges as the narrow "
    "networks have weights; bytes as compressed sparse rows, 4 for a value and 2 for its column; time with torch's sparse "
    "rows. No training afterwards. Mean ± standard deviation over {seeds} of the dense network's training.",
    "lenet5": "Every hidden site loses the same share of its channels or units; test error in %, mean ± standard deviation over {seeds} of the "
    "dense network's training.",
    "cifar10": "The channels of every site, residual streams too, cut by the same share; test error in %, mean ± standard deviation over {seeds} "
    "of the cut of one dense network; figures without ± are of one. The networks' only dense layer gives the scores and stays. One epoch afterwards on labels, or towards the "
    "dense network's scores without labels; its schedule was fixed beforehand.",
    "vgg": "The same VGG with the three dense layers of the original, of 512 units each, trained on what its convolutions say of flipped and "
    "cropped pictures; cut are the units of both hidden dense layers, and afterwards these layers alone are trained, for two epochs on labels. "
    "Test error in %, mean ± standard deviation over {seeds} of the cut of one dense network; figures without ± are of one.",
}


def introduction(part: str) -> str:
    """What the table of a part shows, with how many seeds there are."""
    return INTRODUCTIONS[part].format(seeds=_seeds(load(part)["rows"]))


def load(part: str) -> dict[str, Any]:
    """The record of a part, or one without rows."""
    return {"about": {}, "rows": []} | read_record(f"paper-{part}")


def spoken(values: Sequence[float], digits: int = 2) -> str:
    """Mean ± standard deviation.

    Example:
        >>> spoken([1.0, 2.0, 3.0]), spoken([1.5]), spoken([])
        ('2.00 ± 1.00', '1.50', '–')
    """
    if not values:
        return NOTHING
    spread = f" ± {statistics.stdev(values):.{digits}f}" if len(values) > 1 else ""
    return f"{statistics.mean(values):.{digits}f}{spread}"


def table(heads: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    """A Markdown table.

    Example:
        >>> print(table(["a", "b"], [["1", "2"]]))
        | a | b |
        |---|---|
        | 1 | 2 |
    """
    lines = [heads, *rows]
    text = [f"| {' | '.join(line)} |" for line in lines]
    return "\n".join([text[0], "|" + "---|" * len(heads), *text[1:]])


def _of(rows: Iterable[Row], **wanted: Any) -> list[Row]:
    return [row for row in rows if all(row["key"].get(name) == value for name, value in wanted.items())]


def _values(rows: Iterable[Row], what: str = "error") -> list[float]:
    return [row[what] for row in rows if what in row]


def _names(rows: Iterable[Row], what: str) -> list[Any]:
    return list(dict.fromkeys(row["key"][what] for row in rows))


def _seeds(rows: list[Row]) -> str:
    count = len(_names(rows, "seed"))
    return f"{count} seed" + "s" * (count != 1)


def _cost_cells(rows: list[Row], every: Iterable[Row]) -> list[str]:
    """Parameters, bytes, multiply-adds and milliseconds, each the mean over rows.

    Networks of one shape take one time: the least that was measured of it among `every` row of the record.
    """
    least: dict[Any, float] = {}
    for row in (one for one in every if "milliseconds" in one):
        least[_shape(row)] = min(row["milliseconds"], least.get(_shape(row), math.inf))
    whole: Callable[[str], str] = lambda what: f"{round(statistics.mean(_values(rows, what))):,}"  # noqa: E731
    quickest = statistics.mean(least[_shape(row)] for row in rows if "milliseconds" in row)
    return [whole("parameters"), whole("bytes"), whole("multiply_adds"), f"{quickest:.2f}"]


def _shape(row: Row) -> tuple[Any, ...]:
    """What tells the shapes of networks apart."""
    return row["parameters"], row["bytes"], row["multiply_adds"], row.get("widths")


COSTS = ("parameters", "bytes", "multiply-adds", "ms for 256")


def recovery() -> str:
    """The error of every start after every training, then the aim, then what the cuts and networks cost."""
    rows = load("recovery")["rows"]
    there = _names(rows, "training")
    trainings = [one for one in (CUT_ONLY, *TRAININGS) if one in there]
    cells = [[start, *(spoken(_values(_of(rows, start=start, training=one))) for one in trainings)]
             for start in _names(rows, "start")]  # fmt: skip
    first = table(["start", *("after cutting" if one == CUT_ONLY else one for one in trainings)], cells)
    costs = []
    for start in _names(rows, "start"):
        mine = _of(rows, start=start)
        bare = _of(mine, training=CUT_ONLY) or mine
        seconds = (
            f"{statistics.median(_values(bare, 'seconds')):.2f}"
            if start != "from scratch" and _values(bare, "seconds")
            else NOTHING
        )
        data = bare[0]["data"] if start != "from scratch" else NOTHING
        costs.append([start, data, bare[0]["prior"], *_cost_cells(mine, rows), seconds])
    second = table(["start", "training pictures seen before", "prior", *COSTS, "seconds to cut"], costs)
    return "\n\n".join([first, _aims(rows), second]) + "\n"


def _aims(rows: list[Row]) -> str:
    """In how many runs the aim is met, for every start and training that meets it once."""
    dense = {row["key"]["seed"]: row["error"] for row in _of(rows, start="dense", training=CUT_ONLY)}
    lines = []
    for start in _names(rows, "start"):
        for training in (CUT_ONLY, *TRAININGS):
            mine = [] if start == "dense" else _of(rows, start=start, training=training)
            met = sum(row["error"] <= min(dense[row["key"]["seed"]], AIM) for row in mine)
            under = sum(row["error"] <= AIM for row in mine)
            if under:
                lines.append(
                    [start, training, spoken(_values(mine)), f"{met} of {len(mine)}", f"{under} of {len(mine)}"]
                )
    if not lines:
        return f"No network of 30-100 units is at {AIM} % or less."
    heads = [
        "start",
        "training",
        "error, %",
        f"at or under the same run's dense network and {AIM} %",
        f"at most {AIM} %",
    ]
    return "Where the aim is met, at or under the dense network before any further training:\n\n" + table(heads, lines)


def choice() -> str:
    """Errors on the pictures held out, least in bold."""
    rows = load("choice")["rows"]
    lines = []
    for training in _names(rows, "training"):
        for start in _names(rows, "start"):
            mine = _of(rows, training=training, start=start)
            least = min(_values(mine))
            tried = [f"{r['key']['epochs']} epochs, rate {r['key']['rate']:g}: {r['error']:.2f}" for r in mine]
            marked = [f"**{text}**" if r["error"] == least else text for text, r in zip(tried, mine, strict=True)]
            lines.append([training, start, "; ".join(marked)])
    return table(["training", "start", "error on the pictures held out, %"], lines) + "\n"


def curve() -> str:
    """Error by share of parameters removed, before and after training."""
    rows = load("curve")["rows"]
    shares = sorted(_names(rows, "removed"))
    text = []
    for training in _names(rows, "training"):
        mine = _of(rows, training=training)
        at = [share for share in shares if _of(mine, removed=share)]
        lines = [[method, *(spoken(_values(_of(mine, method=method, removed=share))) for share in at)]
                 for method in _names(mine, "method")]  # fmt: skip
        said = (
            "after cutting"
            if training == CUT_ONLY
            else f"after training ({training}, {_names(mine, 'epochs')[0]} epochs)"
        )
        text.append(
            f"Test error in %, {said}; {_seeds(mine)}:\n\n" + table(["method", *(f"−{s:.0%}" for s in at)], lines)
        )
    sizes = [[f"−{share:.0%}", *_cost_cells(_of(rows, removed=share), rows), ", ".join(dict.fromkeys(r["widths"] for r in _of(rows, removed=share)))]
             for share in shares]  # fmt: skip
    text.append("Sizes, mean over seeds:\n\n" + table(["removed", *COSTS, "widths"], sizes))
    bare = [_of(rows, training=CUT_ONLY, method=method)[:1] for method in _names(rows, "method")]
    had = [[row["key"]["method"], row["data"], row["prior"]] for one in bare for row in one]
    text.append(
        "What the methods had to cut by:\n\n" + table(["method", "training pictures seen by the cut", "prior"], had)
    )
    return "\n\n".join(text) + "\n"


def edges() -> str:
    """Size, error, data needed and time of coresets of edges and of neurons."""
    rows = load("edges")["rows"]
    lines = []
    for share in sorted(_names(rows, "removed")):
        for method in _names(rows, "method"):
            mine = _of(rows, removed=share, method=method)
            seconds = f"{statistics.median(_values(mine, 'seconds')):.2f}"
            lines.append([f"−{share:.0%}", method, spoken(_values(mine)), f"{mine[0]['pictures']:,}", *_cost_cells(mine, rows),
                          seconds, mine[0]["prior"]])  # fmt: skip
    heads = ["removed", "method", "test error, %", "training pictures needed", *COSTS, "seconds to cut", "prior"]
    return table(heads, lines) + "\n"


def lenet5() -> str:
    """LeNet-5 before and after training."""
    return _cuts(load("lenet5")["rows"], {"labels": "after training, %"})


def cifar10() -> str:
    """Each network before and after an epoch."""
    rows, text = load("cifar10")["rows"], []
    for network in _names(rows, "network"):
        mine = _of(rows, network=network)
        after = {name: f"after an epoch, {name}, %" for name in _names(mine, "training") if name != CUT_ONLY}
        text.append(f"**{network}**\n\n{_cuts(mine, after)}")
    return "\n".join(text)


def vgg() -> str:
    """The dense layers before and after training."""
    return _cuts(load("vgg")["rows"], {"labels": "after training, %"})


def _cuts(rows: Sequence[Row], trainings: Mapping[str, str]) -> str:
    """The dense network, then every method at every size.

    Args:
        rows: of one network. trainings: what a cut network was trained for → the head of its column.
    """
    dense = _of(rows, method="dense")
    empty = [NOTHING for _ in trainings]
    lines = [
        ["–", "dense", spoken(_values(dense)), *empty, dense[0]["data"], dense[0]["prior"], *_cost_cells(dense, rows)]
    ]
    for share in sorted(set(_names(rows, "removed")) - {0.0}):
        for method in _names(rows, "method"):
            mine = _of(rows, removed=share, method=method)
            if mine:
                bare = _of(mine, training=CUT_ONLY)
                tuned = [spoken(_values(_of(mine, training=name))) for name in trainings]
                lines.append([f"−{share:.0%}", method, spoken(_values(bare)), *tuned, bare[0]["data"],
                              bare[0]["prior"], *_cost_cells(mine, rows)])  # fmt: skip
    heads = [
        "units removed",
        "method",
        "after cutting, %",
        *trainings.values(),
        "pictures seen by the cut",
        "prior",
        *COSTS,
    ]
    return table(heads, lines) + "\n"

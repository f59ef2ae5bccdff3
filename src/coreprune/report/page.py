"""The report as one page of HTML that needs nothing else: no network, no script, no fonts."""

from __future__ import annotations

import json
import os
import re
import tempfile
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from coreprune.errors import CheckpointError, CorepruneError
from coreprune.model.text import refusals
from coreprune.report.cost import Change
from coreprune.report.generation import Generation
from coreprune.report.numbers import Numbers, Row
from coreprune.report.speed import clear, lines, measured_on, seconds_text, unsteady
from coreprune.report.text import (
    bytes_text,
    digits,
    massive_text,
    outputs_text,
    prior_text,
    scaled,
    trained_text,
)
from coreprune.report.turns import Latency

__all__ = ["page", "write"]

#: how a page that coreprune wrote is known, and may be replaced
_MARK = '<meta name="generator" content="coreprune">'
#: more refusals than this are folded
FEW = 8


def write(path: str | Path, numbers: Numbers, *, force: bool = False) -> Path:
    """Write the page, and its numbers as JSON beside it.

    Args:
        path: of the page, such as report.html; the JSON gets the same name with .json.
        numbers: what it says.
        force: replace a file that coreprune did not write.

    Returns:
        The path of the page.

    Raises:
        CheckpointError: a file is there that is no report, or the disk refuses.
        CorepruneError: jinja2 is not installed.
    """
    target = Path(path)
    if target.suffix.lower() not in {".html", ".htm"}:
        raise CheckpointError(f"{target} does not end in .html: name the page such as report.html")
    data = target.with_suffix(".json")
    for file, mark in ((target, _MARK), (data, '"kind": "report"')):
        if file.exists() and not force and not _holds(file, mark):
            raise CheckpointError(f"{file} exists and is no report of coreprune: give another name, or --force")
    body = json.dumps(numbers.to_json(), indent=1, ensure_ascii=False, allow_nan=False) + "\n"
    html = page(numbers, data.name)
    _replace(data, body)
    _replace(target, html)
    return target


def page(numbers: Numbers, data: str = "") -> str:
    """The HTML of a report.

    Args:
        numbers: what it says. data: name of the JSON file beside it, which the page then links to.

    Raises:
        CorepruneError: jinja2 is not installed.
    """
    try:
        import jinja2
    except ImportError as error:
        raise CorepruneError(f"a report needs jinja2 ({error}): pip install 'coreprune[report]'") from error
    from coreprune.report import figures

    environment = jinja2.Environment(
        loader=jinja2.FileSystemLoader(Path(__file__).parent),
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters |= {
        "percent": _percent, "count": _count, "digits": digits,
        "bytes": lambda count: _tied(bytes_text(count)), "seconds": lambda time: _tied(seconds_text(time)),
    }  # fmt: skip
    groups = _groups(numbers.sites)
    return environment.get_template("page.html.j2").render(
        n=numbers,
        mark=_MARK,
        data=data,
        tiles=_tiles(numbers),
        speeds=[] if numbers.cost is None else lines(numbers.cost),
        tied=_tied,
        prior=prior_text(numbers.recipe),
        outputs=outputs_text(numbers.recipe["outputs"]) if numbers.recipe.get("outputs") else "",
        trained=trained_text(numbers.recipe["distilled"]) if numbers.recipe.get("distilled") else "",
        perplexity=numbers.recipe.get("perplexity") or [],
        joined=figures.joined(numbers),
        massive=massive_text({row.name: row.massive for row in numbers.sites}),
        measured_on="" if numbers.cost is None else measured_on(numbers.cost),
        unsteady="" if numbers.cost is None else unsteady(numbers.cost),
        wide=figures.widths_wide(numbers) if numbers.sites else "",
        narrow=figures.widths_narrow(numbers) if numbers.sites else "",
        groups=groups,
        within=any(row.within is not None for row in numbers.sites),
        curves=[(g["name"], figures.curves(g["curved"], alone=numbers.radius is None)) for g in groups if g["curved"]],
        refused=None if numbers.refused is None else refusals(numbers.refused),
        few=FEW,
        recipe=_recipe(numbers.recipe),
    )


def _tiles(numbers: Numbers) -> list[dict[str, Any]]:
    """The sizes at the top: each with what it was, what it is, and the share that went."""
    on_disk = numbers.file_bytes.before is not None
    disk = ("on disk", numbers.file_bytes, bytes_text)
    sizes = (
        ("parameters", numbers.parameters, _count),
        disk if on_disk else ("in memory", numbers.tensor_bytes, bytes_text),
        ("multiply-adds", numbers.multiply_adds, _count),
    )
    tiles = [_tile(what, change, shown) for what, change, shown in sizes if change.after is not None]
    if numbers.cost is not None:
        time = numbers.cost.latency
        tiles.append(
            {
                "what": "forward pass",
                "after": seconds_text(time.after),
                "before": seconds_text(time.before),
                "left": time.after / time.before,
                **_faster(time),
            }
        )
        if numbers.cost.generation is not None:
            tiles.append(_writing(numbers.cost.generation))
    off = _off(numbers)
    return tiles + ([off] if off else [])


def _writing(found: Generation) -> dict[str, Any]:
    """How fast text is written."""
    before, after = (f"{rate:,.0f}" if rate >= 100 else f"{rate:.3g}" for rate in found.written_per_second)
    return {"what": "tokens per second", "after": after, "before": before, "left": None, **_faster(found.writing)}


def _faster(time: Latency) -> dict[str, Any]:
    """How many times as fast, where the middle halves of the runs do not overlap."""
    if not clear(time):
        return {"change": "no clear difference", "plain": True}
    return {"change": f"{time.speedup:.2f}× as fast", "plain": time.speedup < 1}


def _off(numbers: Numbers) -> dict[str, Any] | None:
    """How far the outputs are off, as far as it is known: measured by `verify`, else by the plan, else predicted."""
    if not numbers.cut:
        return None
    measured = (numbers.checked or {}).get("end_measured")
    if measured is None:
        measured = (numbers.recipe.get("outputs") or {}).get("output_error")
    if measured is not None:
        share, said = float(measured), "of their spread, measured"
    elif numbers.ends is not None and numbers.cut[-1].error is not None:
        when = " before training" if numbers.recipe.get("distilled") else ""
        share, said = numbers.cut[-1].error, f"of their spread, predicted{when}"
    else:
        return None
    return {"what": "outputs are off by", "after": _percent(share), "before": None, "left": None, "change": said,
            "plain": True}  # fmt: skip


def _tile(what: str, change: Change, shown: Any) -> dict[str, Any]:
    removed = change.removed
    return {
        "what": what,
        "after": shown(change.after),
        "before": None if change.before is None else shown(change.before),
        "change": None if removed is None else f"{_percent(abs(removed))} {'less' if removed >= 0 else 'more'}",
        "left": None if removed is None else 1 - removed,
        "plain": not removed or removed < 0,
    }


def _groups(rows: Iterable[Row]) -> list[dict[str, Any]]:
    """Sites that are alike together, in the order in which each group comes first."""
    found: dict[tuple[str, str, int], list[Row]] = {}
    for row in rows:
        found.setdefault((row.group, row.kind, row.before), []).append(row)
    return [
        {
            "name": group,
            "kind": ", ".join(one for one in dict.fromkeys([kind, *(row.activation for row in many)]) if one),
            "rows": many,
            "curved": [row for row in many if row.curve],
            "kept": _range([row.after for row in many], _count),
            "before": before,
            "left": sum(row.after for row in many) / (before * len(many)),
            "error": _range([row.error for row in many], _percent),
            "within": _range([row.within for row in many], digits),
            "whole": next(iter({row.whole for row in many})) if len({row.whole for row in many}) == 1 else "",
        }
        for (group, kind, before), many in found.items()
    ]


def _range(values: Sequence[float | None], shown: Any) -> str:
    """The least and the largest of those that are known."""
    known = sorted(value for value in values if value is not None)
    ends = list(dict.fromkeys(shown(value) for value in known[:1] + known[-1:]))
    return " to ".join(ends)


def _recipe(recipe: Mapping[str, Any]) -> list[tuple[str, str]]:
    """What was asked and was not left at nothing, as text; long values are in the JSON."""
    hidden = {
        "inputs",
        "commands",
        "versions",
        "refused",
        "sites",
        "prior",
        "prior_asked",
        "prior_reason",
        "prior_values",
        "radius",
        "radius_from",
        "outputs",
        "distilled",
        "perplexity",
        "weights",
    }
    shown = [
        (key, value)
        for key, value in recipe.items()
        if key not in hidden and value is not None and value is not False and value not in ([], {})
    ]
    texts = [(key, value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)) for key, value in shown]
    return [(key, value if len(value) <= 300 else "long, see the JSON beside this page") for key, value in texts]


def _percent(share: float) -> str:
    """A share, with two digits where it is small.

    Example:
        >>> _percent(0.1234), _percent(0.0123), _percent(0.0)
        ('12.3%', '1.2%', '0%')
    """
    if share == 0:
        return "0%"
    return f"{100 * share:.1f}%" if share >= 0.1 else f"{100 * share:.2g}%"


def _count(number: float) -> str:
    """A whole number, in millions and more with three digits.

    Example:
        >>> _count(1536), _count(134_515_008)
        ('1,536', '135 M')
    """
    if number < 999_500:
        return f"{number:,.0f}"
    return scaled(number, [(1e12, " T"), (1e9, " G"), (1e6, " M")])


def _tied(words: str) -> str:
    """Words in which a number and its unit stay on one line.

    Example:
        >>> _tied("1.3 ms to 9.5 ms") == "1.3\\u00a0ms to 9.5\\u00a0ms"
        True
    """
    return re.sub(r"(?<=\d) (?=(?:[kMGT]?B|[mµ]?s)\b)", "\u00a0", words)


def _holds(file: Path, mark: str) -> bool:
    try:
        with file.open(encoding="utf-8") as stream:
            return mark in stream.read(2000)
    except (OSError, UnicodeDecodeError):
        return False


def _replace(file: Path, words: str) -> None:
    """Write a file that is there whole, or as it was."""
    try:
        file.parent.mkdir(parents=True, exist_ok=True)
        handle, draft = tempfile.mkstemp(prefix=f".{file.name}.", dir=file.parent)
    except OSError as error:
        raise CheckpointError(f"cannot write {file} ({error.strerror}): choose a place that can be written") from error
    try:
        with os.fdopen(handle, "w", encoding="utf-8") as stream:
            stream.write(words)
        mask = os.umask(0)
        os.umask(mask)
        Path(draft).chmod(0o666 & ~mask)
        Path(draft).replace(file)
    except OSError as error:
        raise CheckpointError(f"cannot write {file} ({error.strerror}): make room or choose another place") from error
    finally:
        Path(draft).unlink(missing_ok=True)

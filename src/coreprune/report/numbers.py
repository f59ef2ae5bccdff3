"""Everything that a report says, as data: the page and the tables are made of this and of nothing else.

The source is what `structure.json` holds, so that a result in memory and one on disk give the same numbers.
"""

from __future__ import annotations

import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from typing import Any

from coreprune.errors import CheckpointError, CorepruneError
from coreprune.model.groups import means
from coreprune.model.site import Inspection, Location, Site
from coreprune.report.beside import Beside
from coreprune.report.cost import Change, Cost
from coreprune.report.recipe import loading, python_call, reported_on, versions
from coreprune.report.text import activation_of, rows_of, starred

__all__ = ["Numbers", "Row", "numbers"]

VERSION = 1
#: up to so many names a page is easily read
ALONE = 14


@dataclass(frozen=True)
class Row:
    """One site.

    Attributes:
        name, kind, activation: as `Site` has them.
        group: the name with its numbers starred, where three or more sites are alike; else the name.
        before, after: units.
        place: of the tensor that makes the units among the tensors; −1 if it is not there.
        writer: the tensor whose rows make the units. readers: those that read them.
        error: relative root mean square error of what the readers get, as the plan predicted or measured it.
        within: ε, no single output is off by more,
        confidence: but for 1 − this share of the inputs (Chebyshev); None where nothing was stated.
        domain: the inputs that this speaks of.
        theorem: what the paper's theorem promises of the draws, if they were drawn.
        massive: units that carry far more than all others, their share, and those of them that went; None if none do.
        curve: (units, error) of the site on its own, ascending; empty if it was not computed.
        whole: why it was not cut; empty if it was.
    """

    name: str
    kind: str
    activation: str
    group: str
    before: int
    after: int
    place: int = -1
    writer: str = ""
    readers: tuple[str, ...] = ()
    error: float | None = None
    within: float | None = None
    confidence: float | None = None
    domain: str = ""
    theorem: Mapping[str, float] | None = None
    massive: Mapping[str, Any] | None = None
    curve: tuple[tuple[int, float], ...] = ()
    whole: str = ""


@dataclass(frozen=True)
class Numbers:
    """A report as data.

    Attributes:
        name: of the result.
        method: with its weights. prior: where the moments come from, in words. data_used: whether data were.
        radius: β that worst cases speak of, None for a network that is no stack; radius_from: why that.
        parameters, tensor_bytes, file_bytes, multiply_adds: before and after; None where it is not known.
        cost: what was measured by running both networks.
        ends: inputs and outputs of a stack.
        sites: in forward order.
        refused: (name, reason) of everything that could not be cut; None if it is not known.
        statements: what `verify` said; checked: the same as data.
        recipe: all that was asked. commands: as they were typed. python: the call that does the same.
        load: code that opens the result.
        made_with: versions when it was cut, empty if they were not written down; reported_with: those of now.
        reported_on: day and processor of the report, which times are of.
        buffers: whether BatchNorm statistics are among what is counted.
    """

    name: str
    method: str
    prior: str
    data_used: bool
    radius: float | None
    radius_from: str
    parameters: Change
    tensor_bytes: Change
    file_bytes: Change
    multiply_adds: Change
    cost: Cost | None
    ends: tuple[int, int] | None
    sites: tuple[Row, ...]
    refused: tuple[tuple[str, str], ...] | None
    statements: tuple[str, ...]
    checked: Mapping[str, Any] | None
    recipe: Mapping[str, Any]
    commands: tuple[str, ...]
    python: str
    load: str
    made_with: Mapping[str, str]
    reported_with: Mapping[str, str]
    reported_on: str
    buffers: bool = False

    @property
    def cut(self) -> tuple[Row, ...]:
        """The sites that shrank."""
        return tuple(row for row in self.sites if not row.whole)

    def to_json(self) -> dict[str, Any]:
        """As plain data, without infinities, which JSON has not."""
        plain = _finite({"kind": "report", "version": VERSION, **asdict(self)})
        assert isinstance(plain, dict)
        if self.cost is not None and self.cost.generation is not None:
            plain["cost"]["generation"] |= _finite(self.cost.generation.to_json())
        return plain


def numbers(structure: Mapping[str, Any], name: str, beside: Beside | None = None) -> Numbers:
    """The numbers of a result.

    Args:
        structure: what structure.json holds. name: what to call the result. beside: what else is known of it.

    Raises:
        CheckpointError: the structure is damaged.
    """
    beside = beside or Beside()
    try:
        return _numbers(structure, name, beside)
    except (KeyError, TypeError, ValueError, AttributeError, IndexError) as error:
        raise CheckpointError(f"the structure.json of {name} is damaged ({error!r}): write it again") from error


def _numbers(structure: Mapping[str, Any], name: str, beside: Beside) -> Numbers:
    recipe, size = structure["recipe"], structure["size"]
    cuts = [(Site.from_json(entry["site"]), len(entry["kept"]), entry["evidence"]) for entry in structure["sites"]]
    shapes = {tensor: list(known[1]) for tensor, known in structure["tensors"].items()}
    dense = _dense(shapes, structure.get("changed", {}), cuts)
    stack = recipe.get("radius") is not None
    multiply_adds = Change(_matrices(dense), _matrices(shapes)) if stack else Change()
    weights = " with least-squares weights" if recipe.get("reweight") else ""
    statements, checked = beside.checked or ((), None)
    refused = recipe.get("refused")
    if beside.inspection is not None:
        refused = [(one.name, one.reason) for one in beside.inspection.refused]
    return Numbers(
        name=name,
        method=f"{recipe['method']}{weights}",
        prior=str(recipe["prior"]),
        data_used=bool(recipe["data_used"]),
        radius=recipe.get("radius"),
        radius_from=str(recipe.get("radius_from", "")),
        parameters=Change(size["dense_parameters"], size["parameters"]),
        tensor_bytes=Change(size["dense_bytes"], size["bytes"]),
        file_bytes=beside.file_bytes,
        multiply_adds=beside.cost.multiply_adds if beside.cost else multiply_adds,
        cost=beside.cost,
        ends=_ends(dense, cuts) if stack and cuts else None,
        sites=_rows(cuts, recipe, list(shapes), beside.inspection),
        refused=None if refused is None else tuple((str(where), str(why)) for where, why in refused),
        statements=tuple(statements),
        checked=checked,
        recipe=dict(recipe),
        commands=tuple(map(str, recipe.get("commands", ()))),
        python=python_call(recipe),
        load=loading(beside.place, beside.opens),
        made_with={str(k): str(v) for k, v in recipe.get("versions", {}).items()},
        reported_with=versions(),
        reported_on=reported_on(),
        buffers=any(tensor.endswith("running_mean") for tensor in shapes),
    )


def _dense(
    shapes: Mapping[str, list[int]], changed: Mapping[str, Any], cuts: Sequence[tuple[Site, int, Any]]
) -> dict[str, list[int]]:
    """Shapes of the dense network's tensors, from those of the smaller one and from what went."""
    made = {name for name, shape in changed.items() if shape is None}
    dense = {name: list(shape) for name, shape in shapes.items() if name not in made}
    for site, kept, _ in cuts:
        for at in dict.fromkeys(site.locations):
            if at.tensor in dense:
                dense[at.tensor][at.axis] += (site.units - kept) * at.span
    return dense


def _matrices(shapes: Mapping[str, Sequence[int]]) -> int:
    """Multiply-adds of a stack for one input: the entries of its matrices."""
    return sum(math.prod(shape) for shape in shapes.values() if len(shape) == 2)


def _ends(dense: Mapping[str, Sequence[int]], cuts: Sequence[tuple[Site, int, Any]]) -> tuple[int, int] | None:
    """Inputs of the first map and outputs of the last, if these are the ends of the stack."""
    first, last = cuts[0][0].incoming, cuts[-1][0].readers[-1]
    matrices = [name for name, shape in dense.items() if len(shape) == 2]
    if matrices[0] != first.tensor or matrices[-1] != last.weight.tensor:
        return None
    return dense[first.tensor][1 - first.axis], dense[last.weight.tensor][last.outputs]


def _rows(
    cuts: Sequence[tuple[Site, int, Any]],
    recipe: Mapping[str, Any],
    tensors: Sequence[str],
    inspection: Inspection | None,
) -> tuple[Row, ...]:
    """The sites that were cut, and where they are known those that were not."""
    by_name = {site.name: (site, kept, evidence) for site, kept, evidence in cuts}
    every = [site for site, _, _ in cuts]
    if inspection is not None:
        every = list(inspection.sites)
    elif recipe.get("sites"):
        every = [_named(*known) for known in recipe["sites"]]
    groups = _labels(every)
    rows = []
    for site in every:
        if site.name in by_name:
            row = _row(*by_name[site.name], groups[site.name])
            rows.append(replace(row, place=tensors.index(row.writer) if row.writer in tensors else -1))
        else:
            why = _why_whole(site, recipe)
            rows.append(
                Row(site.name, site.kind, activation_of(site), groups[site.name], site.units, site.units, whole=why)
            )
    return tuple(rows)


def _named(name: str, kind: str, units: int, activation: str) -> Site:
    """A site of which nothing else is known."""
    nowhere = Location("", 0)
    return Site(str(name), str(kind), int(units), str(activation), (), nowhere, nowhere, ())


def _labels(sites: Sequence[Site]) -> dict[str, str]:
    """For every site what it is called together with those that are alike; its own name where it stands alone.

    Where many are left alone, names that differ in a number within a word (denselayer1, denselayer2) are alike too.
    """
    labels = {name: starred(name, group) for group in rows_of(sites) for name in group}
    if len(set(labels.values())) <= ALONE:
        return labels
    found: dict[tuple[str, str, int], list[str]] = {}
    for site in sites:
        *path, last = site.name.split(".")
        form = ".".join([*(re.sub(r"\d+", "*", part) for part in path), "*" if last.isdigit() else last])
        found.setdefault((form, site.kind, site.units), []).append(site.name)
    return labels | {name: form for (form, _, _), names in found.items() if len(names) > 2 for name in names}


def _row(site: Site, kept: int, evidence: Mapping[str, Any], group: str) -> Row:
    promised = ("theorem_draws", "theorem_delta", "theorem_error")
    theorem = {key: float(evidence[key]) for key in promised if key in evidence}
    stated = "chebyshev_error" in evidence
    curve = evidence.get("curve") or {"units": (), "errors": ()}
    return Row(
        name=site.name,
        kind=site.kind,
        activation=activation_of(site),
        group=group,
        before=site.units,
        after=kept,
        writer=site.incoming.tensor,
        readers=tuple(dict.fromkeys(reader.weight.tensor for reader in site.readers)),
        error=_number(evidence.get("relative_error")),
        within=_number(evidence["chebyshev_error"]) if stated else None,
        confidence=1 - float(evidence["chebyshev_delta"]) if stated else None,
        domain=str(evidence.get("domain", "")),
        theorem=theorem or None,
        massive=_massive(evidence.get("massive")),
        curve=tuple((int(k), float(e)) for k, e in zip(curve["units"], curve["errors"], strict=True)),
    )


def _massive(found: Mapping[str, Any] | None) -> dict[str, Any] | None:
    if found is None:
        return None
    units, gone = ([int(unit) for unit in found[key]] for key in ("units", "removed"))
    return {"units": units, "share": float(found["share"]), "removed": gone}


def _why_whole(site: Site, recipe: Mapping[str, Any]) -> str:
    """Why a site that could be cut was not."""
    if any(_meant(site, pattern) for pattern in recipe.get("ignore", ())):
        return "left whole, as it was to be ignored"
    if recipe.get("kinds") and site.kind not in recipe["kinds"]:
        return "left whole, as its kind was not asked for"
    asked = recipe.get("remove") if isinstance(recipe.get("remove"), Mapping) else recipe.get("units")
    if isinstance(asked, Mapping):
        named = any(_meant(site, pattern) for pattern in asked)
        return "left whole, as was asked" if named else "left whole, as it was not asked for"
    if recipe.get("uniform") == "config":
        return "left whole: the configuration has no field for it, or the budget had room"
    return "left whole by the budget"


def _meant(site: Site, pattern: str) -> bool:
    try:
        return means(pattern, site.name)
    except CorepruneError:  # it is no pattern
        return False


def _number(value: Any) -> float | None:
    return None if value is None or not math.isfinite(float(value)) else float(value)


def _finite(value: Any) -> Any:
    """The same with None for what is no number, and lists for tuples."""
    if isinstance(value, Mapping):
        return {str(key): _finite(one) for key, one in value.items()}
    if isinstance(value, (tuple, list)):
        return [_finite(one) for one in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value

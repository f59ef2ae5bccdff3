"""The summary of a cut as plain text that fits 80 columns."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from coreprune.maths.outliers import FACTOR
from coreprune.model.text import activation_of, digits, inspection_text, rows_of, scaled, starred, table, wrap
from coreprune.plan import Plan

__all__ = [
    "activation_of",
    "bytes_text",
    "digits",
    "inspection_text",
    "outputs_text",
    "prior_text",
    "rows_of",
    "scaled",
    "starred",
    "summary",
    "table",
    "trained_text",
    "wrap",
]

NAMED = 4  # sites that are named of those left whole


def bytes_text(count: int) -> str:
    """Bytes in the unit that suits them.

    Example:
        >>> bytes_text(1_066_440)
        '1.07 MB'
    """
    return scaled(count, [(1e12, " TB"), (1e9, " GB"), (1e6, " MB"), (1e3, " kB"), (1, " B")])


def summary(plan: Plan, dense_parameters: int, dense_bytes: int, parameters: int, small_bytes: int) -> str:
    """Per site what was kept and what is known of it, the size before and after, and what is guaranteed."""
    recipe = plan.recipe
    rows = [
        [
            cut.site.name,
            f"{cut.site.units}",
            f"{cut.kept.numel()}",
            activation_of(cut.site) or "-",
            f"{cut.evidence['relative_error']:.1%}" if "relative_error" in cut.evidence else "-",
            digits(cut.evidence["chebyshev_error"]) if "chebyshev_error" in cut.evidence else "-",
        ]
        for cut in plan.cuts
    ]
    head = ["site", "units", "kept", "activation", "error", "95 % within"][: 5 if recipe["radius"] is None else 6]
    removed = 1 - parameters / max(dense_parameters, 1)
    used = "yes" if recipe["data_used"] else "no"
    weights = "least-squares weights, " if recipe.get("reweight") else ""
    outliers = massive_text({cut.site.name: cut.evidence.get("massive") for cut in plan.cuts})
    lines = [
        f"method {recipe['method']}, {weights}seed {recipe['seed']}, data used: {used}",
        f"prior: {prior_text(recipe)}",
        table(head, [row[: len(head)] for row in rows]) if rows else "nothing was cut",
        f"parameters {dense_parameters:,} -> {parameters:,} ({removed:.1%} removed), "
        f"{bytes_text(dense_bytes)} -> {bytes_text(small_bytes)}",
        *(
            []
            if recipe["radius"] is None
            else [f"largest norm of an input: {recipe['radius']:.4g} ({recipe['radius_from']})"]
        ),
        *([f"outputs: {outputs_text(recipe['outputs'])}"] if recipe.get("outputs") else []),
        *([f"massive units: {outliers}"] if outliers else []),
        *_whole(plan),
        *_notes(plan),
        *_trained(recipe.get("distilled")),
    ]
    return "\n".join(line for text in lines for line in wrap(text))


def _whole(plan: Plan) -> list[str]:
    """The sites that could be cut and were not."""
    cut = {one.site.name for one in plan.cuts}
    names = [str(known[0]) for known in plan.recipe.get("sites") or () if known[0] not in cut]
    if not names or not cut:
        return []
    more = f" and {len(names) - NAMED} more" if len(names) > NAMED else ""
    return [f"left whole: {', '.join(names[:NAMED])}{more}"]


def prior_text(recipe: Mapping[str, Any]) -> str:
    """The prior in words, and why it was picked if nobody asked for it.

    Example:
        >>> prior_text({"prior": "random inputs", "prior_reason": "nothing else is known"})
        'random inputs; picked because nothing else is known'
    """
    reason = recipe.get("prior_reason")
    return str(recipe["prior"]) + (f"; picked because {reason}" if reason else "")


def outputs_text(facts: Mapping[str, Any]) -> str:
    """What all cuts together do to the outputs, as it was measured.

    Example:
        >>> outputs_text({"cosine": 0.98, "output_error": 0.2, "inputs": "8 inputs drawn with another seed"})
        'off by 20.0% of their spread, cosine 0.9800, on 8 inputs drawn with another seed'
    """
    said = f"off by {facts['output_error']:.1%} of their spread"
    if facts.get("cosine") is not None:
        said += f", cosine {facts['cosine']:.4f}"
    if facts.get("divergence") is not None:
        said = f"divergence {facts['divergence']:.3g} nats per token"
    asked = facts.get("asked")
    more = "".join(f" (asked: {kind} {limit:g})" for kind, limit in (asked or {}).items())
    return f"{said}{more}{'' if more or facts.get('divergence') is not None else ','} on {facts['inputs']}"


def massive_text(found: Mapping[str, Mapping[str, Any] | None]) -> str:
    """How many massive units there are in sites that were cut, and whether they stay; empty if there are none.

    Args:
        found: "massive" of the evidence of every cut, by site.

    Example:
        >>> massive_text({"a": {"units": [3, 9], "share": 0.9, "removed": []}, "b": None})
        '2 in 1 site, each with 1,000 times the energy of a typical unit or more, up to 90.0% of a site; all are kept'
        >>> massive_text({"a": {"units": [3, 9], "share": 0.9, "removed": [9]}})[-54:]
        'REMOVED: 9 of a: measure what the network does without'
    """
    known = {name: one for name, one in found.items() if one}
    if not known:
        return ""
    count, sites = sum(len(one["units"]) for one in known.values()), len(known)
    most = max(one["share"] for one in known.values())
    gone = [f"{', '.join(map(str, one['removed']))} of {name}" for name, one in known.items() if one["removed"]]
    where = f"{count} in {sites} site{'' if sites == 1 else 's'}"
    fate = f"REMOVED: {'; '.join(gone)}: measure what the network does without" if gone else "all are kept"
    each = f"each with {FACTOR:,.0f} times the energy of a typical unit or more"
    return f"{where}, {each}, up to {most:.1%} of a site; {fate}"


def trained_text(facts: Mapping[str, Any]) -> str:
    """How a network was trained after the cut, of which what the plan says knows nothing.

    Example:
        >>> trained_text({"steps": 20, "batch": 8, "data_used": False, "prior": "noise", "measured": "squares",
        ...               "before": 0.5, "after": 0.25})
        '20 steps of 8 inputs, noise, data used: no; on inputs held out, squares went from 0.5 to 0.25'
    """
    used = "yes" if facts["data_used"] else "no"
    rose = ": IT ROSE, so that the cut network is better without this training" * (facts["after"] > facts["before"])
    return (
        f"{facts['steps']:,} steps of {facts['batch']} inputs, {facts['prior']}, data used: {used}; on inputs held "
        f"out, {facts['measured']} went from {facts['before']:.4g} to {facts['after']:.4g}{rose}"
    )


def _trained(facts: Mapping[str, Any] | None) -> list[str]:
    return [f"trained afterwards: {trained_text(facts)}. The errors above are from before."] if facts else []


def _notes(plan: Plan) -> list[str]:
    """What the columns mean, and the paper's bound where its method was used."""
    if not plan.cuts:
        return []
    if plan.recipe.get("radius") is None:
        return [
            "error: root mean square error of what the site's readers get, this site alone being cut, as a share of "
            "its spread, on the inputs of the prior; 'coreprune verify' measures what all cuts together do."
        ]
    lines = [
        "error: predicted root mean square error of what the site's readers get, all cuts up to it included, as a "
        "share of its own spread, for inputs of the prior; exact at the network's first hidden layer, behind it under "
        "the Gaussian closure. 95 % within: no single value that they get is off by more in over 5 % of such inputs "
        "(Chebyshev). 'coreprune verify' recomputes both and adds the worst case."
    ]
    bounds = [cut for cut in plan.cuts if "theorem_error" in cut.evidence]
    for cut in bounds:
        known = cut.evidence
        lines.append(
            f"site {cut.site.name}: {known['theorem_draws']:,} draws with replacement (draws=, of which as many units "
            f"survive on average) are off by at most {digits(known['theorem_error'])} at every output, for every input "
            f"of the {known['domain']}, with probability {1 - known['theorem_delta']:.0%} [docs/guarantee.md, 1]"
        )
    if bounds:
        lines.append("That bound holds for any network, and is far from tight on trained ones.")
    return lines

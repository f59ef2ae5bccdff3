"""The model card of a smaller network: what it was made of, how, and what is known of it."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from coreprune.report.text import massive_text, outputs_text, prior_text, trained_text

__all__ = ["card"]


def card(structure: Mapping[str, Any], kind: str) -> str:
    """Markdown for README.md, out of what structure.json says.

    Args:
        structure: see `coreprune.result.read_structure`.
        kind: the class of the network, which opens it.
    """
    recipe, size = structure["recipe"], structure["size"]
    trained = recipe.get("distilled")
    how = "and then trained to agree with the dense network" if trained else "without fine-tuning"
    less = 1 - size["parameters"] / max(size["dense_parameters"], 1)
    outliers = massive_text({one["site"]["name"]: one["evidence"].get("massive") for one in structure["sites"]})
    lines = [
        "---",
        "library_name: transformers",
        "tags: [pruned, coreprune]",
        "---",
        "",
        f"# A smaller {kind}",
        "",
        f"Made by coreprune {how}: {size['dense_parameters']:,} parameters became "
        f"{size['parameters']:,} ({100 * less:.1f} % fewer). Units of hidden layers were removed, and those that stay "
        "were given new outgoing weights that stand for them.",
        "",
        f"- Method: {recipe['method']}{', reweighted' if recipe.get('reweight') else ''}",
        f"- Prior: {prior_text(recipe)}",
        f"- Data used for the cut: {'yes' if recipe['data_used'] else 'no'}",
        f"- Seed: {recipe['seed']}",
        *([] if not recipe.get("outputs") else [f"- Outputs, before against after: {outputs_text(recipe['outputs'])}"]),
        *([f"- Massive units: {outliers}"] if outliers else []),
        *([] if not trained else [_training(trained)]),
        *(f"- Command: `{command}`" for command in recipe.get("commands", ())),
        *(f"- {name} {version}" for name, version in (recipe.get("versions") or {}).items()),
        "",
    ]
    if recipe.get("perplexity"):
        lines += ["| perplexity on | dense | smaller |", "|---|---|---|"]
        lines += [f"| {one['text']} | {one['dense']:.2f} | {one['small']:.2f} |" for one in recipe["perplexity"]]
        lines += [""]
    lines += ["| site | kind | units | kept | error of its readers |", "|---|---|---|---|---|"]
    for entry in structure["sites"]:
        site, error = entry["site"], entry["evidence"].get("relative_error")
        said = "" if error is None else f"{100 * error:.2g} %"
        lines.append(f"| {site['name']} | {site['kind']} | {site['units']} | {len(entry['kept'])} | {said} |")
    lines += [
        "",
        "An error is the root mean square of a reader's output that is lost, relative to its spread, under the prior, "
        f"each site on its own{', before the training' if trained else ''}.",
        "",
        "```python",
        f"from transformers import {kind}",
        "",
        f'model = {kind}.from_pretrained("path/to/this/directory")',
        "```",
        "",
    ]
    return "\n".join(lines)


def _training(trained: Mapping[str, Any]) -> str:
    """What `coreprune.distill` did, in a line."""
    return f"- Trained: {trained_text(trained)}"

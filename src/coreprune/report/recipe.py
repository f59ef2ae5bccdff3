"""How to load a result and how to make it again, as code to copy."""

from __future__ import annotations

import importlib.metadata
import json
import os
import platform
from collections.abc import Mapping
from dataclasses import MISSING, fields
from datetime import datetime, timezone
from functools import cache
from pathlib import Path
from typing import Any

__all__ = ["loading", "python_call", "reported_on", "versions"]

#: arguments of `coreprune.prune` and what they are if nothing is said
_DEFAULTS: dict[str, Any] = {
    "remove": None,
    "units": None,
    "budget": None,
    "draws": None,
    "method": "kernel",
    "reweight": False,
    "ignore": [],
    "protect": None,
    "kinds": None,
    "uniform": False,
    "round_to": None,
    "capture": "auto",
}


def python_call(recipe: Mapping[str, Any]) -> str:
    """The call of `coreprune.prune` that a recipe stands for, what is default left out.

    Example:
        >>> print(python_call({"remove": 0.5, "method": "kernel", "seed": 3}))
        import coreprune as cp
        <BLANKLINE>
        small = cp.prune(model, remove=0.5, seed=3)
        >>> print(python_call({"remove": 0.5, "inputs": {"tensor": [2, 3], "dtype": "float32"}}))
        import coreprune as cp
        import torch
        <BLANKLINE>
        example_inputs = torch.randn(2, 3)
        small = cp.prune(model, example_inputs, remove=0.5, seed=0)
    """
    recipe = {**recipe, "budget": _short(recipe.get("budget"))}
    given = [f"{key}={recipe[key]!r}" for key, usual in _DEFAULTS.items() if recipe.get(key, usual) != usual]
    if recipe.get("prior_asked"):
        given.append(f"prior={recipe['prior_asked']}")
    elif recipe.get("data_used"):
        given.append("data=loader")
    elif recipe.get("prior_values"):
        given += _prior(recipe["prior_values"])
    if recipe.get("radius") is not None and recipe.get("radius_from") == "given":
        given.append(f"radius={recipe['radius']!r}")
    inputs = recipe.get("inputs")
    words = ["model", *(["example_inputs"] if inputs is not None else []), *given]
    words.append(f"seed={recipe.get('seed', 0)!r}")
    lines = ["import coreprune as cp", ""]
    if inputs is not None:
        code = _inputs(inputs)
        lines[1:1] = ["import torch"] if "torch." in code else []
        lines.append(f"example_inputs = {code}")
    lines.append(_call("prune", words))
    trained = recipe.get("distilled")
    if trained:
        known = [f"{key}={trained[key]!r}" for key in ("steps", "batch", "rate", "loss", "seed") if key in trained]
        lines.append(f"# trained on: {trained['prior']}")
        lines.append(_call("distill", ["small", "model", *(["data=loader"] * bool(trained["data_used"])), *known]))
    return "\n".join(lines)


def _call(verb: str, words: list[str]) -> str:
    """A call on one line, or on many where that is too long."""
    line = f"small = cp.{verb}({', '.join(words)})"
    return line if len(line) <= 80 else f"small = cp.{verb}(\n" + "".join(f"    {word},\n" for word in words) + ")"


def _inputs(known: Any) -> str:
    """Inputs like those that the plan wrote down, as code.

    Example:
        >>> _inputs({"dict": {"input_ids": {"tensor": [2, 7], "dtype": "int64", "values": []}}})
        '{"input_ids": torch.zeros(2, 7, dtype=torch.int64)}'
    """
    if not isinstance(known, Mapping):
        return repr(known)
    if "tensor" in known:
        shape, kind = ", ".join(map(str, known["tensor"])), str(known.get("dtype", "float32"))
        if "float" in kind:
            return f"torch.randn({shape or '()'}{'' if kind == 'float32' else f', dtype=torch.{kind}'})"
        return f"torch.zeros({shape or '()'}, dtype=torch.{kind})"
    if "dict" in known:
        return f"{{{', '.join(f'{json.dumps(key)}: {_inputs(value)}' for key, value in known['dict'].items())}}}"
    if "tuple" in known:
        return f"({', '.join(_inputs(value) for value in known['tuple'])},)"
    return repr(known.get("value"))


def written(prior: Any) -> str | None:
    """A prior that was asked for as code, its defaults left out; None where none was.

    Example:
        >>> from coreprune.priors.zipf import Zipf
        >>> written("noise"), written(Zipf(tokens=4096)), written("auto")
        ("'noise'", 'cp.Zipf(tokens=4096)', None)
    """
    if prior is None or isinstance(prior, str):
        return None if prior in {None, "auto"} else repr(prior)
    plain = (bool, int, float, str, type(None))
    given = []
    for field in fields(prior):
        value = getattr(prior, field.name)
        if field.default is not MISSING and (
            value is field.default or (isinstance(value, plain) and value == field.default)
        ):
            continue
        if not isinstance(value, plain) and not (isinstance(value, tuple) and all(isinstance(v, plain) for v in value)):
            return "prior"  # what was given cannot be written out
        given.append(f"{field.name}={value!r}")
    return f"cp.{type(prior).__name__}({', '.join(given)})"


def _short(budget: Any) -> Any:
    """A budget with the file that holds its table of times in place of that."""
    return {**budget, "table": "structure.json"} if isinstance(budget, Mapping) and "table" in budget else budget


def _prior(values: Mapping[str, Any]) -> list[str]:
    """The prior, unless it is the default; one per feature is too long to be written out."""
    usual = {"mean": 0.0, "std": None, "scales": [1.0]}
    given = {key: values[key] for key, default in usual.items() if values.get(key, default) != default}
    if any(isinstance(given.get(key), list) for key in ("mean", "std")):
        return ["prior=prior"]
    return [f"prior=cp.Gaussian({', '.join(f'{key}={value!r}' for key, value in given.items())})"] if given else []


def loading(place: str, opens: str) -> str:
    """Code that opens a saved result.

    Args:
        place: its directory; empty where it is not saved yet.
        opens: the class of `transformers` that does; empty for `coreprune.load`.

    Example:
        >>> print(loading("small", ""))
        import coreprune as cp
        <BLANKLINE>
        # make_model() gives the dense architecture: its class, or a function without arguments
        model = cp.load("small", make_model).eval()
    """
    quoted = json.dumps(place or "small", ensure_ascii=False)
    if opens:
        return f"from transformers import {opens}\n\nmodel = {opens}.from_pretrained({quoted})"
    return (
        "import coreprune as cp\n\n"
        + ("" if place else f"small.save({quoted})  # it is not saved yet\n")
        + "# make_model() gives the dense architecture: its class, or a function without arguments\n"
        f"model = cp.load({quoted}, make_model).eval()"
    )


def versions() -> dict[str, str]:
    """Versions of what decides the numbers, of those that are installed."""
    return dict(_installed())


@cache
def _installed() -> dict[str, str]:
    """The same, read from disk once."""
    found = {"python": platform.python_version()}
    for name in ("coreprune", "torch", "transformers", "numpy", "safetensors"):
        try:
            found[name] = importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            continue
    return found


def reported_on() -> str:
    """Today, and the processor, as far as it says what it is.

    Example:
        >>> reported_on()[:2]
        '20'
    """
    return f"{datetime.now(timezone.utc):%Y-%m-%d}, {_processor()}, {os.cpu_count()} processors"


def _processor() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8", errors="replace").splitlines()
    except OSError:  # not Linux
        lines = []
    named = (line.partition(":")[2].strip() for line in lines if line.startswith("model name"))
    return next(named, "") or platform.processor() or platform.machine()

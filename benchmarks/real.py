"""Trained networks of the real kinds, without data and without fine-tuning: CIFAR-10 networks, MiniLM-L6, SmolLM2-135M.

    python benchmarks/real.py [--data FOLDER] [--only resnet20 | vgg16-half | minilm | smollm2] [--verify]

- ResNet-20 and VGG-16 at half width (train_cifar.py): accuracy on the 10,000 CIFAR-10 test pictures.
- all-MiniLM-L6-v2 (networks.py): mean cosine of the sentence embeddings with the dense network's.
- SmolLM2-135M-Instruct (networks.py): perplexity of news.

A fraction is of the units of every site in question. Text is of the Brown corpus: what is measured on is news (ca*),
and rows with "data used: yes" take the moments from other genres (8,192 tokens), or from 512 training pictures. Every row has passed
coreprune's own comparison of the cut network with the dense one whose removed units are replaced, or there would be
no row. Both Hugging Face directories are also cut by `coreprune prune`, and opened by `from_pretrained` in a process
that does not know coreprune. Writes real.json and real.md into benchmarks/results/, anew after every network.
"""

from __future__ import annotations

import argparse
import json
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file
from torch import Tensor, nn
from torch.nn.functional import cosine_similarity

import coreprune as cp
from cifar import load, pictures, standardised
from datasets import add_data_option
from networks import minilm, smollm2
from records import commit, read_record, results, write_record
from texts import NEWS, WINDOW, WINDOWS, brown, embedded, genre, of_one_length, perplexity, sentences

Row = dict[str, Any]
Measure = Callable[[nn.Module], float]

DATA_PICTURES, SENTENCES = 512, 500
KERNEL, MAGNITUDE, ORACLE = "kernel", "magnitude", "kernel, real inputs"
NOISE, OWN_TEXT, OWN_WIDTHS = "kernel, random inputs", "kernel, text of its own", "kernel, widths of its own"
#: label → arguments of prune
PLAIN: dict[str, dict[str, Any]] = {
    KERNEL: {},
    MAGNITUDE: {"method": "magnitude"},
    NOISE: {"prior": "noise"},
}
SEEDS, FRACTIONS, IMAGE = (0, 1, 2), (0.25, 0.5), torch.zeros(2, 3, 32, 32)
#: opens a directory with transformers alone, runs it, and stores the outputs
FRESH = """
import sys
import torch, transformers
from safetensors.torch import load_file, save_file
place, kind, inputs, outputs = sys.argv[1:]
model = getattr(transformers, kind).from_pretrained(place, local_files_only=True).eval()
with torch.inference_mode():
    save_file({"y": model(**load_file(inputs))[0].contiguous()}, outputs)
assert not any(name.startswith("coreprune") for name in sys.modules)
"""


# ---------------------------------------------------------------------------------------------- one row


def row(
    network: str, scope: str, fraction: float, method: str, measured: Sequence[tuple[cp.Pruned, float, float]]
) -> Row:
    """What is known of a cut, or of several with different seeds: (smaller network, figure, seconds) each."""
    figures = [figure for _, figure, _ in measured]
    small = measured[0][0]
    recipe = small.plan.recipe
    weights_only = recipe["method"] != "kernel" and not recipe["reweight"]
    made: Row = {
        "network": network,
        "cut": scope,
        "fraction": fraction,
        "method": method,
        "prior": "none: weights alone" if weights_only else recipe["prior"],
        "data_used": recipe["data_used"],
        "parameters": small.parameters,
        "dense_parameters": small.dense_parameters,
        "removed": 1 - small.parameters / small.dense_parameters,
        "seconds": statistics.median(seconds for *_, seconds in measured),
        "equality_check": "passed",
        "figure": statistics.mean(figures),
        "figures": figures,
    }
    print(f"{network}, {scope}, {fraction:.0%}, {method}: {made['figure']:.4g} ({made['seconds']:.0f} s)", flush=True)
    return made


def dense_row(network: str, model: nn.Module, measure: Measure) -> Row:
    """The network before, in the same form."""
    figure = measure(model)
    print(f"{network}, dense: {figure:.4g}", flush=True)
    return {
        "network": network,
        "cut": "nothing",
        "fraction": 0.0,
        "method": "dense",
        "prior": "none",
        "data_used": False,
        "removed": 0.0,
        "seconds": 0.0,
        "equality_check": "",
        "figure": figure,
        "figures": [figure],
    }


def cut(model: nn.Module, example: Any, measure: Measure, **asked: Any) -> tuple[cp.Pruned, float, float]:
    """A smaller network, its figure, and how long it took to make."""
    start = time.perf_counter()
    small = cp.prune(model, example, **asked)
    seconds = time.perf_counter() - start
    return small, measure(small.model), seconds


# ---------------------------------------------------------------------------------------------- pictures


def tested(data: Path) -> tuple[Tensor, Tensor]:
    """The test pictures as the networks take them, and their labels."""
    x, y = pictures("test", data)
    return standardised(x).contiguous(memory_format=torch.channels_last), y  # which is faster


def scopes_of(model: nn.Module) -> dict[str, list[str] | None]:
    """Which sites are cut → their kinds; None for all."""
    every = {site.kind for site in cp.inspect(model, IMAGE).sites}
    return ({"inside blocks": ["conv"]} if len(every) > 1 else {}) | {"every site": None}


def cifar(name: str, data: Path) -> tuple[list[Row], dict[str, Any]]:
    """One CIFAR-10 network: accuracy in per cent, and what `verify` says of the mildest cut."""
    (x, y), model = tested(data), load(name)

    def accuracy(network: nn.Module) -> float:
        with torch.inference_mode():
            parts = zip(x.split(100), y.split(100), strict=True)
            right = sum(int((network(a).argmax(1) == b).sum()) for a, b in parts)
        return 100 * right / len(y)

    train = pictures("train", data)[0]
    loader = list(standardised(train[:: len(train) // DATA_PICTURES][:DATA_PICTURES]).split(64))
    rows = [dense_row(name, model, accuracy)]
    statements: dict[str, list[str]] = {}
    for scope, kinds in scopes_of(model).items():
        for fraction in FRACTIONS:
            asked: dict[str, Any] = {"remove": {"*": fraction}, "kinds": kinds}
            for method, arguments in PLAIN.items():
                one = cut(model, IMAGE, accuracy, **asked, **arguments)
                rows.append(row(name, scope, fraction, method, [one]))
                if method == KERNEL and not statements:
                    statements = spoken(model, one[0], x)
            drawn = [cut(model, IMAGE, accuracy, **asked, method="uniform", seed=seed) for seed in SEEDS]
            rows.append(row(name, scope, fraction, f"uniform, {len(SEEDS)} seeds", drawn))
            rows.append(row(name, scope, fraction, ORACLE, [cut(model, IMAGE, accuracy, **asked, data=loader)]))
            less = next(one for one in reversed(rows) if one["method"] == KERNEL)["removed"]
            rows.append(row(name, scope, fraction, OWN_WIDTHS, [cut(model, IMAGE, accuracy, remove=less, kinds=kinds)]))
    return rows, {"verify": statements}


def spoken(model: nn.Module, small: cp.Pruned, x: Tensor) -> dict[str, list[str]]:
    """What `verify` measures on inputs of the prior, and on test pictures."""
    few = x[:: len(x) // 500]
    pairs = {"inputs of the prior": cp.verify(model, small), "500 test pictures": cp.verify(model, small, inputs=few)}
    return {name: found.statements() for name, found in pairs.items()}


def verified(name: str, data: Path) -> dict[str, Any]:
    """What `verify` says of the mildest cut of a CIFAR-10 network, alone."""
    model = load(name)
    kinds = next(iter(scopes_of(model).values()))
    small = cp.prune(model, IMAGE, remove={"*": FRACTIONS[0]}, kinds=kinds)
    return {"verify": spoken(model, small, tested(data)[0]), "verify_commit": commit()}


# ---------------------------------------------------------------------------------------------- text


def embedding_network(data: Path) -> tuple[list[Row], dict[str, Any]]:
    """MiniLM: mean cosine of mean-pooled embeddings of news sentences with the dense network's."""
    from transformers import AutoModel, AutoTokenizer

    tokenizer, model = AutoTokenizer.from_pretrained(minilm()), AutoModel.from_pretrained(minilm()).eval()
    texts = brown(data)
    news = [tokenizer(line, return_tensors="pt")["input_ids"] for line in sentences(texts, SENTENCES, news=True)]
    before = embedded(model, news)

    def cosine(network: nn.Module) -> float:
        return float(cosine_similarity(before, embedded(network, news)).mean())

    loader = of_one_length(tokenizer, sentences(texts, 4000, news=False), 1024)
    return ffn("minilm", minilm(), model, cosine, (0.25, 0.5), "linear", loader)


def language_model(data: Path) -> tuple[list[Row], dict[str, Any]]:
    """SmolLM2: perplexity of the first 8,192 tokens of news, in windows of 512."""
    from transformers import AutoModelForCausalLM, AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(smollm2())
    model = AutoModelForCausalLM.from_pretrained(smollm2(), dtype=torch.float32).eval()
    texts = brown(data)

    news = genre(tokenizer, texts, NEWS)
    others = [text for name, text in texts.items() if not name.startswith(NEWS)]
    joined = "".join(text[:3000] for text in others[:: len(others) // 20])
    other = torch.tensor(tokenizer(joined)["input_ids"][: WINDOW * WINDOWS]).view(WINDOWS, WINDOW)

    def measure(network: nn.Module) -> float:
        return perplexity(network, news)

    loader = [{"input_ids": part, "use_cache": False} for part in other.split(2)]
    return ffn("smollm2", smollm2(), model, measure, (0.2, 0.3), "gated", loader, {"use_cache": False})


def ffn(
    name: str,
    directory: Path,
    model: nn.Module,
    measure: Measure,
    fractions: Sequence[float],
    kind: str,
    loader: list[dict[str, Any]],
    more: Mapping[str, Any] | None = None,
) -> tuple[list[Row], dict[str, Any]]:
    """The inner units of every FFN, one width for all, so that `from_pretrained` opens the result."""
    example = {"input_ids": torch.zeros(2, 16, dtype=torch.long), **(more or {})}
    as_data = {"input_ids": torch.zeros_like(loader[0]["input_ids"]), **(more or {})}  # the data have other shapes
    rows = [dense_row(name, model, measure)]
    command: dict[str, Any] = {}
    for fraction in fractions:
        asked: dict[str, Any] = {"remove": {"*": fraction}, "uniform": "config", "kinds": [kind]}
        one = cut(model, example, measure, **asked)
        rows.append(row(name, "every FFN", fraction, KERNEL, [one]))
        less = {**asked, "remove": rows[-1]["removed"], "uniform": False}
        first = not command
        if first:
            command = by_command(directory, kind, fraction, one[0].model)
        del one
        others = [
            (MAGNITUDE, example, PLAIN[MAGNITUDE]),
            (ORACLE, as_data, {"data": loader}),
            (OWN_WIDTHS, example, less),
        ]
        if first:
            others += [(NOISE, example, {"prior": "noise"})]
        if first and kind == "gated":
            others += [(OWN_TEXT, example, {"prior": "generated"})]
        for method, inputs, arguments in others:
            rows.append(
                row(name, "every FFN", fraction, method, [cut(model, inputs, measure, **{**asked, **arguments})])
            )
    return rows, {"command": command}


def by_command(directory: Path, kind: str, fraction: float, small: nn.Module) -> dict[str, Any]:
    """Cut the directory by the command line, open the result in a fresh process, and compare its outputs."""
    from safetensors.torch import save_file

    ids = torch.randint(1000, 20_000, (2, 32), generator=torch.Generator().manual_seed(1))
    with tempfile.TemporaryDirectory() as folder:
        place = Path(folder)
        out, inputs, outputs = str(place / "small"), str(place / "inputs"), str(place / "outputs")
        words = ["prune", str(directory), out, "--kinds", kind, "--remove", f"*={fraction}"]
        start = time.perf_counter()
        subprocess.run(
            [sys.executable, "-c", "from coreprune.cli.main import main; main()", *words],
            check=True,
            capture_output=True,
        )
        seconds = time.perf_counter() - start
        save_file({"input_ids": ids}, inputs)
        subprocess.run([sys.executable, "-c", FRESH, out, type(small).__name__, inputs, outputs], check=True)
        written, files = load_file(outputs)["y"], sorted(file.name for file in Path(out).iterdir())
        width = json.loads((Path(out) / "config.json").read_text())["intermediate_size"]
    with torch.inference_mode():
        own = small(input_ids=ids)[0]
    gap = float((written - own).abs().max())
    found = {
        "command": f"coreprune prune {directory.name} small --kinds {kind} --remove '*={fraction}'",
        "seconds": seconds,
        "files": files,
        "intermediate_size": width,
        "outputs_equal": torch.equal(written, own),
        "largest_difference": gap,
        "largest_output": float(own.abs().max()),
    }
    print(found, flush=True)
    return found


# ---------------------------------------------------------------------------------------------- the record


#: name → (what its figures are, format of one, how it is measured)
NETWORKS: dict[str, tuple[str, str, Callable[[Path], tuple[list[Row], dict[str, Any]]]]] = {
    "resnet20": ("accuracy on 10,000 test pictures, %", ".2f", lambda data: cifar("resnet20", data)),
    "vgg16-half": ("accuracy on 10,000 test pictures, %", ".2f", lambda data: cifar("vgg16-half", data)),
    "minilm": (f"mean cosine with the dense embeddings, {SENTENCES} sentences", ".3f", embedding_network),
    "smollm2": ("perplexity on 8,192 tokens of news", ".1f", language_model),
}


def markdown(networks: Mapping[str, dict[str, Any]]) -> str:
    """One table for each network, every row with its prior and whether data were used."""
    text = []
    for name, body in networks.items():
        what, form, _ = NETWORKS[name]
        dense = body["rows"][0]
        text.append(
            f"**{name}**, {body['rows'][1]['dense_parameters']:,} numbers; {what}: dense {dense['figure']:{form}}; "
            f"measured on commit {body['commit']}\n"
        )
        text.append("| cut | units | method | result | parameters removed | seconds | check | data used | prior |")
        text.append("|" + "---|" * 9)
        for one in body["rows"][1:]:
            figure = f"{one['figure']:{form}}"
            if len(one["figures"]) > 1:
                figure += f" ± {statistics.stdev(one['figures']):{form}}"
            text.append(
                f"| {one['cut']} | −{one['fraction']:.0%} | {one['method']} | {figure} | {one['removed']:.1%} "
                f"| {one['seconds']:.1f} | {one['equality_check']} | {'yes' if one['data_used'] else 'no'} "
                f"| {one['prior']} |"
            )
        text.append("")
        for inputs, statements in body.get("verify", {}).items():
            at = body.get("verify_commit", body["commit"])
            text += [f"- `verify` of the first row's cut, on {inputs} (commit {at}): {one}" for one in statements]
        if command := body.get("command"):
            equal = "equal" if command["outputs_equal"] else f"differ by {command['largest_difference']:.1e}"
            text.append(
                f"- `{command['command']}` ({command['seconds']:.0f} s), then `from_pretrained` in a fresh process: "
                f"outputs {equal} to those of the network that `prune` returned in Python"
            )
        text.append("")
    return "\n".join(text)


def main() -> None:
    """Measure network by network, and write after each."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    add_data_option(parser)
    parser.add_argument("--only", choices=NETWORKS, help="this network; the others stay in the record as they are")
    parser.add_argument("--verify", action="store_true", help="only what verify says of the CIFAR-10 networks")
    args = parser.parse_args()
    if args.verify:
        known = read_record("real")["networks"]
        for name in [args.only] if args.only else ("resnet20", "vgg16-half"):
            write({name: known[name] | verified(name, args.data)})
        return
    for name in [args.only] if args.only else NETWORKS:
        start = time.perf_counter()
        at = commit()
        rows, more = NETWORKS[name][2](args.data)
        write({name: {"rows": rows, **more, "commit": at, "wall_seconds": time.perf_counter() - start}})


def write(new: Mapping[str, dict[str, Any]]) -> None:
    """Put networks into the record; the others stay in it as they are."""
    known = {**read_record("real").get("networks", {}), **new}
    networks = {name: {"figure": NETWORKS[name][0], **known[name]} for name in NETWORKS if name in known}
    write_record("real", {"networks": networks})
    text = markdown(networks)
    (results() / "real.md").write_text(text)
    print(text, flush=True)


if __name__ == "__main__":
    main()

"""Put the tables and figures of benchmarks/results/ into docs/results.md and docs/paper.md, so that no figure there is typed.

python benchmarks/publish.py [--only results | paper]
"""

from __future__ import annotations

import argparse
import re
import shutil
from pathlib import Path

import torch

from coreprune.demo.run import rows
from front import table
from paper import tables
from records import read_record, results

MARKER = "<!-- generated -->"
DOCS = Path(__file__).parent.parent / "docs"


def _about(name: str) -> str:
    about = read_record(name)["about"]
    return f"`python benchmarks/{name}.py`, {about['date']}, torch {about['torch']}, {about['machine']}, commit {about['commit']}."


def _lenet() -> str:
    return (
        "## LeNet-300-100\n\nTest error in %, mean ± standard deviation over training seeds; no fine-tuning. "
        "Settings were chosen on MNIST. " + _about("lenet") + "\n\n" + (results() / "lenet.md").read_text() + "\n"
        "![MNIST test error against the share of parameters removed, log scale: refined stays lowest, then kernel, "
        "then sampling and magnitude](figures/lenet.svg)\n"
    )


def _synthetic() -> str:
    studies = read_record("synthetic")["studies"]
    size = 100
    methods = list(studies[0]["curves"])
    text = [
        "## Worst error over the ball",
        "",
        f"The paper's synthetic experiment at {size} of 1,000 points: the worst error found by gradient ascent, as a share of the total sensitivity. *Coreset* and "
        "*uniform* are draws, mean ± standard deviation; *percentile* keeps the largest weights times norms; *kernel* is made for Gaussian inputs and bounded by no theorem. "
        + _about("synthetic"),
    ]
    for outputs in dict.fromkeys(one["outputs"] for one in studies):
        mine = [one for one in studies if one["outputs"] == outputs]
        what = "One neuron" if outputs == 1 else f"A layer of {outputs} neurons that share a coreset"
        text += [
            "",
            f"{what}, {mine[0]['draws']} draws:",
            "",
            f"| activation | {' | '.join(methods)} | theorem, 95 % |",
            "|" + "---|" * (len(methods) + 2),
        ]
        for study in mine:
            points = [next(p for p in study["curves"][m] if p["size"] == size) for m in methods]
            cells = [f"{p['mean']:.4f}" + (f" ± {p['std']:.4f}" if p["std"] else "") for p in points]
            at = [p["size"] for p in study["curves"][methods[0]]].index(size)
            text.append(f"| {study['activation']} | {' | '.join(cells)} | {study['theorem'][at]:.2f} |")
    alt = "worst error against coreset size for eight activations, for one neuron and for a layer"
    return "\n".join([*text, "", f"![{alt}](figures/synthetic.svg)", ""])


def _speed() -> str:
    body = read_record("kernel_speed")
    lines = [
        "## Speed of one kernel coreset",
        "",
        f"float32, {body['about']['threads']} thread(s), as a ratio to the operations it cannot avoid. "
        + _about("kernel_speed"),
        "",
        "| n | d | p | removed | seconds | raw operations | ratio | peak, n×n matrices | where the time goes |",
        "|---|---|---|---|---|---|---|---|---|",
    ]
    for row in body["rows"]:
        raw = sum(row["raw_seconds"].values())
        lines.append(
            f"| {row['n']} | {row['d']} | {row['p']} | {row['removed']:.0%} | {row['seconds']:.2f} | {raw:.2f} | "
            f"{row['ratio']:.2f} | {row['peak_matrices']:.2f} | "
            + ", ".join(f"{name} {seconds / row['seconds']:.0%}" for name, seconds in row["parts"].items())
            + " |"
        )
    lines += ["", f"LeNet-300-100 to 100-35 through `cp.prune`: {body['lenet']['median']:.3f} s.", ""]
    return "\n".join(lines)


def _certificates() -> str:
    return (
        "## Certificates\n\nLeNet-300-100, first layer, ball of radius 9.8; then both layers at 150-50, relative error of "
        "the outputs. " + _about("certificates") + "\n\n" + (results() / "certificates.md").read_text()
    )


def _real() -> str:
    return (
        "## Convolutional nets and language models\n\nTrained networks, no fine-tuning; every row says whether data were used. "
        + _about("real")
        + "\n\n"
        + (results() / "real.md").read_text()
    )


def _vision() -> str:
    """Empty where there is no record yet."""
    if not (results() / "vision.md").exists():
        return ""
    shutil.copy(results() / "vision.svg", DOCS / "figures" / "vision.svg")
    return (
        "## Published methods on image classifiers\n\nOur code from the published formulas, no fine-tuning; rows with data have 512 "
        "training pictures without labels. *compared*: the smaller network was compared in float64 with the dense one whose removed "
        "units are replaced as planned; other methods do more than replace units. "
        + _about("vision")
        + "\n\n"
        + (results() / "vision.md").read_text()
        + "\n![accuracy of every method at each cut, best on top](figures/vision.svg)\n"
    )


def _language() -> str:
    """Empty where there is no record yet."""
    if not (results() / "language.md").exists():
        return ""
    figures = {
        "language": "every method's figure at each cut, best on top; hollow dots are calibrated on real text",
        "language-tokens": "perplexity of adventure against tokens of the model's own text",
    }
    shown = [name for name in figures if (results() / f"{name}.svg").exists()]
    for name in shown:
        shutil.copy(results() / f"{name}.svg", DOCS / "figures" / f"{name}.svg")
    return (
        "## Published methods on transformers\n\nOur code from the published formulas, no fine-tuning; calibrated methods get text of "
        "other genres than what is measured on, all the same. Seconds are of one thread's CPU and count the calibration pass. "
        "*compared* is as above. "
        + _about("language")
        + "\n\n"
        + (results() / "language.md").read_text()
        + "".join(f"\n![{figures[name]}](figures/{name}.svg)\n" for name in shown)
    )


def _distilled() -> str:
    """Empty where there is no record yet."""
    body = read_record("distilled")
    if not body:
        return ""
    facts = body["distilled"]
    rows = [(name, body[name]) for name in ("dense", "cut", "trained")]
    lines = [
        "## Training afterwards, without data",
        "",
        f"{body['network']}, {body['removed']:.1%} of its parameters removed by the default (prior: {body['prior of the cut']}), "
        f"then trained to agree with the dense network: {facts['steps']:,} steps of {facts['batch']} sequences of 128 tokens at "
        f"the default rate, {body['seconds'] / 60:.0f} minutes of one thread's CPU with what it writes first. Data used: "
        f"{'yes' if facts['data_used'] else 'no'}. Trained on: {facts['prior']}. " + _about("distilled"),
        "",
        "| | news | adventure |",
        "|---|---|---|",
        *(f"| {name} | {one['news']:.2f} | {one['adventure']:.2f} |" for name, one in rows),
        "",
        f"Perplexity on 8,192 tokens each. {facts['measured'][:1].upper()}{facts['measured'][1:]}, on "
        f"{facts['held_out']} sequences held out: {facts['before']:.3f} before, {facts['after']:.3f} after.",
        "",
    ]
    return "\n".join(lines)


def _paper() -> str:
    """The paper's experiments: parts that have no record yet are left out."""
    parts = {
        "recovery": (
            "## LeNet-300-100 to 30-100",
            tables.recovery,
            "error after every way of training, a dot for a seed",
        ),
        "choice": ("## How to train, chosen on held-out training pictures", tables.choice, None),
        "curve": (
            "## Error against compression",
            tables.curve,
            "error over the share of parameters removed, log scale",
        ),
        "edges": ("## Edges judged on data, neurons judged without", tables.edges, "error over bytes, log scales"),
        "lenet5": ("## LeNet-5", tables.lenet5, None),
        "cifar10": ("## VGG-16 at half width and ResNet-20 on CIFAR-10", tables.cifar10, None),
        "vgg": ("## The dense layers of a VGG-16 on CIFAR-10", tables.vgg, None),
    }
    text = []
    for name, (title, make, figure) in parts.items():
        if tables.load(name)["rows"]:
            about = _about(f"paper-{name}").replace(
                f"python benchmarks/paper-{name}.py", f"python -m paper --only {name}"
            )
            text += [f"{title}\n", tables.introduction(name) + " " + about + "\n", make()]
            if figure is not None:
                text.append(f"![{figure}](figures/paper-{name}.svg)\n")
                shutil.copy(results() / f"paper-{name}.svg", DOCS / "figures" / f"paper-{name}.svg")
    return "\n".join(text)


def _demo(pages: list[Path]) -> None:
    """Measure the demonstration and rewrite its table in the pages, which choose the methods they show."""
    torch.set_num_threads(1)
    measured = list(rows(seed=0))
    for page in pages:
        _, old, _ = _within(page, "demo")
        shown = re.findall(r"^\| `(\w+)`", old, re.MULTILINE)
        widths = list(dict.fromkeys(row.widths for row in measured[1:]))
        lines = ["| method | " + " | ".join(widths) + " |", "|---" * (len(widths) + 1) + "|"]
        if "dense" in old:
            lines.append(
                f"| dense network, {measured[0].widths} | {measured[0].test_error_percent:.2f} |"
                + " |" * (len(widths) - 1)
            )
        for method in shown:
            cells = [f"{row.test_error_percent:.2f}" for row in measured if row.method == method]
            lines.append(f"| `{method}` | {' | '.join(cells)} |")
        _fill(page, "demo", "\n".join(lines))


def _within(page: Path, name: str) -> tuple[str, str, str]:
    """What stands before, between and behind the two marks of a name."""
    before, rest = page.read_text().split(f"<!-- {name} -->")
    inside, after = rest.split(f"<!-- /{name} -->")
    return before, inside, after


def _fill(page: Path, name: str, text: str) -> None:
    """Replace what stands between the two marks of a name."""
    before, _, after = _within(page, name)
    page.write_text(f"{before}<!-- {name} -->\n{text}\n<!-- /{name} -->{after}")


def _rewrite(page: Path, text: str) -> None:
    """Replace what follows the marker."""
    head = page.read_text().split(MARKER)[0]
    page.write_text(head + MARKER + "\n\n" + text)


def main() -> None:
    """Rewrite what follows the markers, the tables of the demonstration, and the README's of trained networks."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", choices=("results", "paper"), help="this page")
    only = parser.parse_args().only
    if only != "paper":
        _demo([DOCS.parent / "README.md", DOCS / "methods.md"])
        _fill(DOCS.parent / "README.md", "networks", table())
        parts = [_lenet(), _real(), _vision(), _language(), _distilled(), _certificates(), _speed(), _synthetic()]
        _rewrite(DOCS / "results.md", "\n".join(part for part in parts if part))
        for name in ("lenet.svg", "synthetic.svg"):
            shutil.copy(results() / name, DOCS / "figures" / name)
    if only != "results":
        _rewrite(DOCS / "paper.md", _paper())


if __name__ == "__main__":
    main()

"""Published baselines against coreprune on transformers: same model, tokens, parameters removed and evaluation.

    python benchmarks/language.py [--data FOLDER] [--network NAME …] [--only PART …] [--rows PATTERN …] [--again]
    python benchmarks/language.py --study tokens

- SmolLM2-135M-Instruct: perplexity of the first 8,192 tokens of news (Brown ca*), in windows of 512.
- all-MiniLM-L6-v2: mean cosine of the embeddings of 500 sentences of news with the dense network's.

Nothing is fine-tuned. What goes are units of the FFNs, the same share of each, or as many parameters as at the first
share, shared out by the method itself ("own widths"). SliceGPT, which narrows the residual stream instead, has the
same number of parameters left. Calibrated methods get text of other genres than news and adventure, all the same.
Nothing was chosen on news: `--study tokens` measures on adventure (Brown cn*) how many tokens of its own text a
language model needs. That sites which turn together go through their inputs three times, at the rate they do, was chosen on
adventure too, with SmolLM2; MiniLM had no part in it.

The baselines are those of `benchmarks/baselines`, our code from the published formulas, carried out by coreprune's
surgery; those that keep units as they are have passed its float64 comparison. Seconds are of one thread's CPU and count
the calibration pass. Every row is stored as it is measured, and what is stored is not measured again but with --again:
a run goes on where another was stopped. Writes language.json, language.md, and figures into benchmarks/results/.
"""

from __future__ import annotations

import argparse
import statistics
import time
from collections.abc import Iterable, Sequence
from datetime import datetime, timezone
from fnmatch import fnmatch
from functools import partial
from typing import Any

import torch

import coreprune as cp
from cases import DENSE, NETWORKS, Bench, Case, Made, by_baseline, by_slicegpt, cases
from datasets import add_data_option
from decoding import ROUNDS, speeds
from language_report import draw, known, markdown
from records import commit, results, write_record

Row = dict[str, Any]

PARTS = ("baselines", "slicegpt", "coreprune", "speed")
#: tokens of its own text that a language model prunes itself by
STUDY = (2_048, 8_192, 32_768, 131_072)
#: the commit that this code was read from, as the working tree may move on during a run
AT = commit()


# ---------------------------------------------------------------------------------------------- measured and stored


def store(what: str, new: Sequence[Row], names: Sequence[str]) -> None:
    """Put rows into the record, where they replace those of the same names.

    Args:
        what: "rows", "speed" or "study". new: the rows. names: keys that tell rows apart.
    """
    stamped = [row | {"commit": AT, "date": datetime.now(timezone.utc).strftime("%Y-%m-%d")} for row in new]
    body = {one: known(one) for one in ("rows", "speed", "study")}
    mine = {tuple(row[name] for name in names) for row in stamped}
    body[what] = [row for row in body[what] if tuple(row[name] for name in names) not in mine] + stamped
    write_record("language", body)


def measured(bench: Bench, case: Case) -> Row:
    """One row."""
    figures, made = [], []
    for seed in case.seeds:
        one = case.make(bench, seed)
        figures.append(bench.measure(one.network))
        made.append(one)
    first: Made = made[0]
    return {
        "network": case.network,
        "part": case.part,
        "method": case.method,
        "cut": case.cut,
        "tokens": case.tokens,
        "source": first.source,
        "data_used": first.data_used,
        "compared": all(one.compared for one in made),
        "parameters": first.parameters,
        "dense_parameters": bench.parameters({}),
        "removed": 1 - first.parameters / bench.parameters({}),
        "seconds": statistics.median(one.seconds for one in made),
        "figure": statistics.mean(figures),
        "figures": figures,
    }


def rows(bench: Bench, wanted: Sequence[Case]) -> None:
    """Measure and store cases one by one."""
    for i, case in enumerate(wanted):
        start = time.perf_counter()
        row = measured(bench, case)
        store("rows", [row], ("network", "method", "cut", "tokens"))
        print(
            f"[{i + 1}/{len(wanted)}] {case.network}, {case.method}, {case.tokens:,} tokens, {case.cut}: "
            f"{row['figure']:{bench.about.form}}, {row['removed']:.1%} removed "
            f"({row['seconds']:.0f} s CPU; {time.perf_counter() - start:.0f} s with measuring)",
            flush=True,
        )


def speed(bench: Bench) -> None:
    """How fast cut networks read and write: one for each shape that methods leave behind."""
    (first, second), tokens = bench.about.fractions, bench.about.amounts[-1]
    plain = partial(by_baseline, bench, 0, label="largest L2 norms", tokens=0)
    flap = partial(by_baseline, bench, 0, label="FLAP", tokens=tokens, fraction=first)
    made = {
        DENSE: Made(bench.model, bench.parameters({}), "", False, False, 0.0),
        f"one width, −{first:.0%}": plain(fraction=first),
        f"one width, −{second:.0%}": plain(fraction=second),
        f"one width and a bias (FLAP), −{first:.0%}": flap(),
        f"FLAP's own widths and a bias, as −{first:.0%}": flap(own=True),
        f"SliceGPT, as −{first:.0%}": by_slicegpt(bench, 0, fraction=first, tokens=tokens, aside=False),
    }
    ids = torch.cat(bench.text(tokens)[:2])[:2]
    found = speeds({name: one.network for name, one in made.items()}, ids, lambda i: print(f"round {i} of {ROUNDS}"))
    new = [
        {"network": bench.name, "shape": name, "parameters": made[name].parameters, "batch": list(ids.shape), **one}
        for name, one in found.items()
    ]
    store("speed", new, ("network", "shape"))


def study(bench: Bench, amounts: Iterable[int], *, again: bool) -> None:
    """Perplexity of adventure against the tokens of its own text that the network was cut by."""
    assert bench.study is not None
    done = set() if again else {row["tokens"] for row in known("study")}
    if not again and not done:
        print(f"dense: {bench.study(bench.model):{bench.about.form}}", flush=True)
    for tokens in amounts:
        if tokens in done:
            continue
        start = time.process_time()
        asked: dict[str, Any] = {
            "remove": {"*": bench.about.fractions[0]},
            "uniform": "config",
            "kinds": [bench.about.kind],
        }
        small = cp.prune(bench.model, bench.example, prior=cp.Generated(tokens=tokens), **asked)
        seconds = time.process_time() - start
        figure = bench.study(small.model)
        store("study", [{"tokens": tokens, "figure": figure, "seconds": seconds}], ("tokens",))
        print(f"{tokens:,} tokens: {figure:{bench.about.form}} ({seconds:.0f} s CPU)", flush=True)


# ---------------------------------------------------------------------------------------------- the command


def arguments() -> argparse.Namespace:
    """What was asked."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    add_data_option(parser)
    parser.add_argument("--network", nargs="+", choices=NETWORKS, default=list(NETWORKS), help="these networks")
    parser.add_argument("--only", nargs="+", choices=PARTS, default=PARTS, help="these parts")
    parser.add_argument("--rows", nargs="+", metavar="PATTERN", default=["*"], help="methods whose names match")
    parser.add_argument("--again", action="store_true", help="measure also what is stored")
    parser.add_argument("--study", choices=("tokens",), help="this instead of the rows")
    parser.add_argument("--tokens", nargs="+", type=int, default=STUDY, help="of the study (default: %(default)s)")
    return parser.parse_args()


def wanted(name: str, args: argparse.Namespace) -> list[Case]:
    """Cases of a network that are asked for, without those that are stored unless they are to be measured again."""
    stored = {(row["network"], row["method"], row["cut"], row["tokens"]) for row in known("rows")}
    return [
        case
        for case in cases(name, NETWORKS[name])
        if case.part in args.only
        and any(fnmatch(case.method, pattern) for pattern in args.rows)
        and (args.again or case.key not in stored)
    ]


def run(name: str, args: argparse.Namespace) -> None:
    """One network."""
    about, todo = NETWORKS[name], wanted(name, args)
    timed = about.language and "speed" in args.only and (args.again or not known("speed"))
    if not todo and not timed:
        return
    bench = about.load(args.data)
    rows(bench, todo)
    if timed:
        speed(bench)


def main() -> None:
    """Measure what is not stored yet, then write tables and figures."""
    args = arguments()
    torch.set_num_threads(1)
    if args.study:
        study(NETWORKS["smollm2"].load(args.data), args.tokens, again=args.again)
    else:
        for name in args.network:
            run(name, args)
    text = markdown()
    (results() / "language.md").write_text(text)
    draw()
    print(text, flush=True)


if __name__ == "__main__":
    main()

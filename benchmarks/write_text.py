"""Write the generic text that ships with the package: `src/coreprune/priors/generic.txt`.

    python benchmarks/write_text.py [--output FILE] [--seed 0]

SmolLM2-135M-Instruct (Apache-2.0) goes on from every line of `src/coreprune/priors/openings.txt`, the first words of
texts of many kinds, at temperature 1, so that what it writes has the variety of what it was trained on. (Asked for
pieces in a chat it writes prose of one kind.) Each piece ends at its last whole sentence. The openings were written for
this purpose and fixed before anything was measured with the text. No person's text and no data set goes in, so the
text is neither a user's data nor anybody's training data. 300 kB at most.
"""

from __future__ import annotations

import argparse
import random
import re
from pathlib import Path

import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

from coreprune.priors.generated import sample
from networks import smollm2

PRIORS = Path(__file__).parent.parent / "src" / "coreprune" / "priors"
#: tokens that are kept of an opening, tokens of a piece, pieces for each opening, bytes in all
HEAD, TOKENS, PIECES, LIMIT = 6, 160, 5, 300_000
TEMPERATURE = 1.0


def whole(piece: str) -> str:
    """The piece up to its last whole sentence, without blank lines; empty where it is not mostly text in Latin letters."""
    text = "\n".join(" ".join(line.split()) for line in piece.splitlines() if line.strip())
    ends = [found.end() for found in re.finditer(r"[.!?][\"')”]?(?=\s|$)", text)]
    text = text[: ends[-1]].strip() if ends else ""
    strange = sum(not (c.isascii() or c.isalpha() or c in "’‘“”–—é") for c in text)
    shown = "".join(c for c in text if c.isprintable() or c == "\n")
    return shown if len(text.split()) >= 40 and strange < 0.02 * len(text) else ""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--output", type=Path, default=PRIORS / "generic.txt")
    parser.add_argument("--seed", type=int, default=0)
    args = parser.parse_args()
    tokenizer = AutoTokenizer.from_pretrained(smollm2())
    model = AutoModelForCausalLM.from_pretrained(smollm2(), dtype=torch.bfloat16).eval()
    openings = (PRIORS / "openings.txt").read_text(encoding="utf-8").splitlines()
    starts = torch.tensor([tokenizer(one)["input_ids"][:HEAD] for one in openings])
    generator = torch.Generator().manual_seed(args.seed)
    pieces: list[str] = []
    for i in range(PIECES):
        written = tokenizer.batch_decode(sample(model, starts, TOKENS, generator, TEMPERATURE))
        pieces += [text for text in map(whole, written) if text]
        print(f"{len(pieces)} pieces of {(i + 1) * len(openings)}", flush=True)
    random.Random(args.seed).shuffle(pieces)
    while sum(len(piece.encode()) + 2 for piece in pieces) > LIMIT:
        pieces.pop()
    args.output.write_text("\n\n".join(pieces) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()

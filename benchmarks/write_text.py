"""Write the generic text that ships with the package: `src/coreprune/priors/generic.txt`.

    python benchmarks/write_text.py [--output FILE] [--seed 0]

SmolLM2-135M-Instruct (Apache-2.0) is asked for one short piece for every pair of a kind of writing and a subject, and
samples its answer. The kinds and subjects are the lists below, fixed before anything was measured with the text. Each
piece ends at its last whole sentence; pieces that repeat themselves, or that are not plain prose, are left out. No person's text
and no data set goes in, so the text is neither a user's data nor anybody's training data. 300 kB at most.
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

KINDS = (
    "a news report", "a short story", "an encyclopedia article", "a letter to a friend", "a product review",
    "a how-to guide", "a diary entry", "an opinion column", "a conversation between two people", "a speech",
    "a travel description", "a scientific explanation for students", "an interview", "a business memo",
    "questions and answers", "a biography",
)  # fmt: skip
SUBJECTS = (
    "the weather", "a football match", "an election", "a hospital", "cooking a meal", "the history of a city",
    "a new computer", "the ocean", "a family dispute", "a court case", "music", "the price of bread", "a long journey",
    "the stars", "a garden", "a school", "a factory", "an old house", "a painting", "birds", "money and banks",
    "a bicycle", "a war long ago", "sleep", "religion", "a bridge", "a language", "a lost dog", "the theatre",
    "farming", "a railway accident", "friendship",
)  # fmt: skip
TOKENS, BATCH, LIMIT = 160, 64, 300_000
TEMPERATURE = 0.8


def whole(piece: str) -> str:
    """The piece up to its last whole sentence, in one paragraph per line; empty where it is no prose."""
    text = "\n".join(" ".join(line.split()) for line in piece.splitlines() if line.strip())
    text = re.sub(r"[*#_`|]+", "", text)
    ends = [found.end() for found in re.finditer(r"[.!?][\"')]?(?=\s|$)", text)]
    text = text[: ends[-1]].strip() if ends else ""
    words = text.split()
    strange = sum(not (c.isascii() and (c.isalnum() or c in " .,;:!?'\"()-\n$%&/")) for c in text)
    varied = len(set(words)) / max(len(words), 1)
    return text if len(words) >= 60 and varied > 0.4 and strange < 0.01 * len(text) else ""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    here = Path(__file__).parent.parent / "src" / "coreprune" / "priors" / "generic.txt"
    parser.add_argument("--output", type=Path, default=here)
    parser.add_argument("--seed", type=int, default=0)
    args = parser.parse_args()
    tokenizer = AutoTokenizer.from_pretrained(smollm2())
    model = AutoModelForCausalLM.from_pretrained(smollm2(), dtype=torch.bfloat16).eval()
    asked = [f"Write {kind} about {subject}." for kind in KINDS for subject in SUBJECTS]
    random.Random(args.seed).shuffle(asked)
    generator = torch.Generator().manual_seed(args.seed)
    groups: dict[int, list[list[int]]] = {}  # questions of one length are answered together
    for one in asked:
        chat = [{"role": "user", "content": one}]
        ids = tokenizer.apply_chat_template(chat, add_generation_prompt=True)["input_ids"]
        groups.setdefault(len(ids), []).append(ids)
    answers: dict[str, str] = {}
    for length, questions in groups.items():
        for start in range(0, len(questions), BATCH):
            prompts = torch.tensor(questions[start : start + BATCH])
            written = sample(model, prompts, length + TOKENS, generator, TEMPERATURE)
            texts = tokenizer.batch_decode(written[:, length:], skip_special_tokens=True)
            answers |= zip(tokenizer.batch_decode(prompts, skip_special_tokens=True), texts, strict=True)
            print(f"{len(answers)} of {len(asked)} pieces", flush=True)
    pieces = [text for text in map(whole, answers.values()) if text]
    random.Random(args.seed).shuffle(pieces)
    while sum(len(piece.encode()) + 2 for piece in pieces) > LIMIT:
        pieces.pop()
    args.output.write_text("\n\n".join(pieces) + "\n")


if __name__ == "__main__":
    main()

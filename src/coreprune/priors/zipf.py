"""Random tokens that are as uneven as words are: Zipf's law over the places of the vocabulary.

Vocabularies of byte-pair encoding and WordPiece are in the order in which they were merged, so that what is frequent
comes first, and the index of a token stands for its rank. That is an assumption: a vocabulary that is sorted otherwise,
or that starts with bytes, single letters or unused places, follows it only roughly. One token says nothing of the next.

Source: Zipf 1949, Human behavior and the principle of least effort; the offset: Mandelbrot 1953.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from coreprune.errors import InvalidInputError
from coreprune.priors.text import around, places, tokenizer_of

__all__ = ["Zipf", "ordinary"]


@dataclass(frozen=True)
class Zipf:
    """The prior of random tokens with p(r) ∝ (r + offset)^(−exponent), r = 1, 2, … in the order of the vocabulary.

    Special tokens, as the model's configuration or the tokenizer beside its weights names them, are not drawn. Where
    such a tokenizer puts tokens around a text, every sequence has them.

    Attributes:
        tokens: how many to draw in all.
        length: of one sequence, with the tokens that begin and end one.
        exponent: 0 is even; about 1 in most languages.
        offset: flattens the law for the first ranks.

    Example:
        >>> import coreprune as cp
        >>> print(cp.Zipf(tokens=4096).said)
        random tokens by Zipf's law (4,096 tokens, exponent 1, offset 2.7)
    """

    tokens: int = 32_768
    length: int = 64
    exponent: float = 1.0
    offset: float = 2.7

    @property
    def said(self) -> str:
        """The prior in words."""
        law = f"exponent {self.exponent:g}, offset {self.offset:g}"
        return f"random tokens by Zipf's law ({self.tokens:,} tokens, {law})"

    def draw(self, model: nn.Module, rows: int, seed: int, longest: int = 2**31, tokenizer: Any = None) -> Tensor:
        """Token indices, (sequences, length).

        Args:
            model: that the tokens are for; not changed. rows: of its table of tokens.
            seed: of every choice. longest: sequence that is known to fit.
            tokenizer: in place of the one that lies beside the weights.

        Raises:
            InvalidInputError: numbers that cannot be meant, or no token that could be drawn.
        """
        if not (self.tokens >= self.length >= 1 and 0 <= self.exponent < math.inf and 0 <= self.offset < math.inf):
            raise InvalidInputError(
                f"{self} was given: give one sequence of tokens at least, and an exponent and an offset from 0 on"
            )
        tokenizer = tokenizer_of(model) if tokenizer is None else tokenizer
        before, after = around(tokenizer) if tokenizer is not None else ([], [])
        length = min(self.length, places(model), longest)
        inner, count = length - len(before) - len(after), -(-self.tokens // length)
        kept = ordinary(model, tokenizer, rows)
        if inner < 1 or not len(kept):
            raise InvalidInputError(
                f"sequences of {length} tokens, out of {len(kept)} that are not special, leave nothing to draw: give "
                "a longer length, or prior='noise'"
            )
        sums = (kept + 1 + self.offset).double().pow(-self.exponent).cumsum(0)
        generator = torch.Generator().manual_seed(seed)
        level = torch.rand(count, inner, generator=generator, dtype=torch.float64) * sums[-1]
        drawn = kept[torch.searchsorted(sums, level, right=True).clamp(max=len(kept) - 1)]
        ends = [torch.tensor(part, dtype=torch.int64).expand(count, -1) for part in (before, after)]
        return torch.cat([ends[0], drawn, ends[1]], 1)


def ordinary(model: nn.Module, tokenizer: Any, rows: int) -> Tensor:
    """Tokens of the vocabulary that are not special, in its order."""
    config: Any = getattr(model, "config", None)
    config = config.get_text_config() if hasattr(config, "get_text_config") else config
    special: set[int] = set() if tokenizer is None else set(tokenizer.all_special_ids)
    for name in ("bos", "eos", "pad", "unk", "cls", "sep", "mask", "decoder_start"):
        value = getattr(config, f"{name}_token_id", None)
        special |= {one for one in (value if isinstance(value, (list, tuple)) else (value,)) if isinstance(one, int)}
    sizes = [rows, getattr(config, "vocab_size", None), None if tokenizer is None else len(tokenizer)]
    size = min(one for one in sizes if isinstance(one, int) and one > 0)
    return torch.tensor([token for token in range(size) if token not in special], dtype=torch.int64)

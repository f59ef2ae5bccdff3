"""Text as a prior: a generic one that comes with the package, or a file of the user's.

The generic text was written once by SmolLM2-135M-Instruct (Apache-2.0) with `benchmarks/write_text.py`, seed 0, which
goes on from the openings in `openings.txt`. It is no user's data and no training data; that it is a small model's
English, and makes little sense, is its limit.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from coreprune.errors import InvalidInputError

__all__ = ["Text", "around", "lines_of", "places", "reads", "tokenizer_of"]

GENERIC = Path(__file__).with_name("generic.txt")


@dataclass(frozen=True)
class Text:
    """The prior of text, as the network's tokenizer cuts it.

    Attributes:
        path: a plain text file in UTF-8; the generic text that comes with the package if none is given.
        tokenizer: of `transformers`; by default the one that lies beside the model's weights.
        tokens: how many to use at most, evenly from the whole text.
        length: of one sequence, with the tokens that begin and end one.

    Example:
        >>> import coreprune as cp
        >>> cp.Text().data_used, cp.Text("mine.txt").data_used
        (False, True)

        With a model of `transformers`: ``cp.prune(model, ids, remove=0.1, prior=cp.Text("mine.txt"))``.
    """

    path: str | Path | None = None
    tokenizer: Any = None
    tokens: int = 65_536
    length: int = 64

    @property
    def data_used(self) -> bool:
        """Whether a file of the user's is read."""
        return self.path is not None

    @property
    def said(self) -> str:
        """The prior in words."""
        if self.path is not None:
            return f"measured on text, {Path(self.path).name} (at most {self.tokens:,} tokens)"
        return f"generic text of coreprune, written by SmolLM2-135M-Instruct (at most {self.tokens:,} tokens)"

    def draw(self, model: nn.Module) -> Tensor:
        """Token indices, (sequences, length).

        Raises:
            InvalidInputError: no tokenizer, no such file, or too little text.
        """
        return self._windows(model)[0]

    def held_out(self, model: nn.Module, tokens: int) -> tuple[Tensor, bool]:
        """Sequences that `draw` leaves out, up to so many tokens, and whether there are some: else some of its own."""
        taken, left = self._windows(model)
        found = left if len(left) else taken
        count = min(max(1, tokens // found.shape[1]), len(found))
        return found[torch.linspace(0, len(found) - 1, count).long()], bool(len(left))

    def _windows(self, model: nn.Module) -> tuple[Tensor, Tensor]:
        """The sequences that are used, evenly from the whole text, and those that are left out."""
        file = Path(self.path) if self.path is not None else GENERIC
        text = _read(file)
        tokenizer = self.tokenizer if self.tokenizer is not None else tokenizer_of(model)
        if tokenizer is None:
            raise InvalidInputError(
                f"no tokenizer lies beside {type(model).__name__}: give prior=Text(tokenizer=...), or prior='noise'"
            )
        pieces = [piece.strip() for piece in re.split(r"\n\s*\n", text) if piece.strip()]
        bare = tokenizer(pieces, add_special_tokens=False, verbose=False)["input_ids"] if pieces else []
        running = torch.tensor([token for piece in bare for token in piece])
        before, after = around(tokenizer)
        length = min(self.length, places(model))
        inner = length - len(before) - len(after)
        count = running.numel() // max(inner, 1)
        if inner < 1 or not count:
            raise InvalidInputError(
                f"{file.name} has {running.numel()} tokens, too few for one sequence of {length}: give more text"
            )
        windows = running[: count * inner].view(count, inner)
        wanted = max(1, self.tokens // length)
        used = torch.full((count,), count <= wanted)
        if count > wanted:
            used[torch.linspace(0, count - 1, wanted).long()] = True
        ends = [torch.tensor(part, dtype=torch.int64).expand(count, -1) for part in (before, after)]
        whole = torch.cat([ends[0], windows, ends[1]], 1)
        return whole[used], whole[~used]


def places(model: nn.Module) -> int:
    """The longest sequence that a network of `transformers` has places for."""
    config: Any = getattr(model, "config", None)
    config = config.get_text_config() if hasattr(config, "get_text_config") else config
    known = (getattr(config, name, None) for name in ("max_position_embeddings", "n_positions"))
    return min((n for n in known if isinstance(n, int) and n > 0), default=2**31)


def lines_of(file: Path) -> list[str]:
    """The lines of a text file that are not blank.

    Raises:
        InvalidInputError: it cannot be read as text.
    """
    return [line.strip() for line in _read(file).splitlines() if line.strip()]


def _read(file: Path) -> str:
    try:
        return file.read_text(encoding="utf-8")
    except OSError as error:
        raise InvalidInputError(f"{file} cannot be read ({error.strerror}): check the path") from error
    except UnicodeDecodeError as error:
        raise InvalidInputError(f"{file} is no text in UTF-8 ({error.reason}): give a plain text file") from error


def reads(model: nn.Module) -> bool:
    """Whether a tokenizer lies beside the weights of a network of `transformers`."""
    return tokenizer_of(model) is not None


def around(tokenizer: Any) -> tuple[list[int], list[int]]:
    """Tokens that begin and end a sequence, as the tokenizer puts them around a word."""
    word = tokenizer("a", add_special_tokens=False)["input_ids"]
    whole = tokenizer("a")["input_ids"]
    for start in range(len(whole) - len(word) + 1):
        if whole[start : start + len(word)] == word:
            return whole[:start], whole[start + len(word) :]
    return [], []


def tokenizer_of(model: nn.Module) -> Any:
    """The tokenizer in the directory that the model was read from; None if there is none, or one that knows no words.

    Without files `transformers` makes one of nothing but special tokens, which reads every text as unknown.
    """
    place = getattr(getattr(model, "config", None), "_name_or_path", "") or ""
    if not place or not Path(place).is_dir():
        return None
    try:
        from transformers import AutoTokenizer

        found = AutoTokenizer.from_pretrained(place, local_files_only=True, trust_remote_code=False)
        return found if set(found.get_vocab().values()) - set(found.all_special_ids) else None
    except Exception:  # whatever a missing or odd file raises
        return None

"""How fast a causal language model reads a prompt and writes on, in tokens per second, dense and small in turns."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from coreprune.priors.generated import writes
from coreprune.priors.text import places
from coreprune.report.turns import Latency, timed

__all__ = ["Generation", "generation"]

PROMPT, TOKENS, SEED = 128, 32, 0
FEWEST = 3  # runs of each network


@dataclass(frozen=True)
class Generation:
    """Reading and writing of one sequence at a time.

    Attributes:
        prompt: tokens that are read at once. tokens: that are written then, one by one, the likeliest each time.
        reading: time of the one. writing: time of the other.
    """

    prompt: int
    tokens: int
    reading: Latency
    writing: Latency

    @property
    def read_per_second(self) -> tuple[float, float]:
        """Tokens of the prompt per second, before and after."""
        return self.prompt / self.reading.before, self.prompt / self.reading.after

    @property
    def written_per_second(self) -> tuple[float, float]:
        """Tokens written per second, before and after."""
        return self.tokens / self.writing.before, self.tokens / self.writing.after

    def to_json(self) -> dict[str, Any]:
        """The rates, as plain data."""
        return {"read_per_second": self.read_per_second, "written_per_second": self.written_per_second}


@torch.inference_mode()
def generation(dense: nn.Module, small: nn.Module, seconds: float = 2.0) -> Generation | None:
    """Let both read and write; None where they are no causal language models of `transformers`.

    The prompt is drawn evenly from the vocabulary, and nothing ends a text before all tokens are written, so that both
    do the same work.

    Args:
        dense: before. small: after. Both are in evaluation mode.
        seconds: to spend on each of the two; each network runs 3 times at least.
    """
    if not (writes(dense) and writes(small)):
        return None
    room = min(places(dense), places(small))
    tokens = min(TOKENS, room // 2)
    prompt = min(PROMPT, room - tokens)
    config: Any = dense.config
    generator = torch.Generator().manual_seed(SEED)
    ids = torch.randint(int(config.get_text_config().vocab_size), (1, prompt), generator=generator)
    device = next(small.parameters()).device
    reading = timed(_reader(dense, ids), _reader(small, ids), device, seconds, FEWEST)
    writers = _Writer(dense, ids, tokens), _Writer(small, ids, tokens)
    writing = timed(*writers, device, seconds, FEWEST, lambda: _prepare(writers))
    return Generation(prompt, tokens, reading, writing)


def _reader(model: nn.Module, ids: Tensor) -> Callable[[], Any]:
    """A call that reads a prompt, as one does before writing."""
    more = {"logits_to_keep": 1} if "logits_to_keep" in inspect.signature(model.forward).parameters else {}
    given = ids.to(next(model.parameters()).device)
    return lambda: model(input_ids=given, use_cache=True, **more)


def _prepare(writers: Iterable[_Writer]) -> None:
    for writer in writers:
        writer.prepare()


class _Writer:
    """Writes on, with a cache of keys and values; the prompt is read before, on another clock."""

    def __init__(self, model: nn.Module, ids: Tensor, tokens: int) -> None:
        self._model, self._tokens = model, tokens
        self._read = _reader(model, ids)
        self._answer: Any = None

    def prepare(self) -> None:
        """Read the prompt."""
        self._answer = self._read()

    def __call__(self) -> None:
        """Write, each time the likeliest token."""
        past, new = self._answer.past_key_values, self._answer.logits[:, -1:].argmax(-1)
        for _ in range(self._tokens):
            answer = self._model(input_ids=new, past_key_values=past, use_cache=True)
            past, new = answer.past_key_values, answer.logits[:, -1:].argmax(-1)

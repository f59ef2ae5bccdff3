"""Text that a causal language model writes itself: no data, and yet inputs of the kind that it was trained on.

Every sequence starts with the model's own beginning-of-text token and one token drawn evenly from the vocabulary, so
that no two start alike, and goes on as the model samples.

Source: 01-maths §4, self-generated; Liu et al. 2023, LLM-QAT, arXiv:2305.17888, there for quantisation.
"""

from __future__ import annotations

import copy
import inspect
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from coreprune.errors import InvalidInputError
from coreprune.model.tensors import narrow

__all__ = ["Generated", "picked", "places", "sample", "writes"]


@dataclass(frozen=True)
class Generated:
    """The prior of a causal language model's own text.

    Attributes:
        tokens: how many to sample in all.
        length: of one sequence.
        temperature: that logits are divided by.
        together: sequences that are sampled at a time.

    Example:
        >>> import coreprune as cp
        >>> print(cp.Generated(tokens=4096).said)
        text that the model sampled itself (4,096 tokens, temperature 1)

        With a model of `transformers`: ``cp.prune(model, ids, remove=0.1, prior=cp.Generated(tokens=4096))``.
    """

    tokens: int = 32_768
    length: int = 128
    temperature: float = 1.0
    together: int = 64

    @property
    def said(self) -> str:
        """The prior in words."""
        return f"text that the model sampled itself ({self.tokens:,} tokens, temperature {self.temperature:g})"

    def draw(self, model: nn.Module, seed: int, progress: Callable[[int, int, str], None] | None = None) -> Tensor:
        """Token indices, (sequences, length).

        Args:
            model: a causal language model of `transformers`; not changed.
            seed: of every choice. progress: called with tokens done, in all, and what is done.

        Raises:
            InvalidInputError: the model is none, or numbers that cannot be meant.
        """
        if not writes(model):
            raise InvalidInputError(
                f"{type(model).__name__} cannot write text of its own: give another prior, such as 'text' or 'noise'"
            )
        if self.length < 4 or self.tokens < self.length or not self.temperature > 0 or self.together < 1:
            raise InvalidInputError(f"{self} was given: give at least 4 tokens in a sequence, and one sequence")
        length = min(self.length, places(model))
        generator = torch.Generator().manual_seed(seed)
        config: Any = model.config
        size, first = int(config.get_text_config().vocab_size), _first(config)
        count = -(-self.tokens // length)
        starts = torch.randint(size, (count, 1), generator=generator)
        if first is not None:
            starts = torch.cat([torch.full((count, 1), first), starts], 1)
        writer = _fast(model)
        parts: list[Tensor] = []
        for part in starts.split(self.together):
            done = sum(one.numel() for one in parts)

            def step(reached: int, done: int = done, rows: int = len(part)) -> None:
                if progress:
                    progress(done + rows * reached, count * length, "writing text")

            parts.append(sample(writer, part, length, generator, self.temperature, step))
        return torch.cat(parts)

    def sampled(self, model: nn.Module) -> int:
        """How many tokens `draw` samples: all but those that begin a sequence."""
        config: Any = model.config
        length = min(self.length, places(model))
        return -(-self.tokens // length) * (length - (1 if _first(config) is None else 2))


def writes(model: nn.Module) -> bool:
    """Whether a network is a causal language model of `transformers`, whose own text can be sampled."""
    config = getattr(model, "config", None)
    able = getattr(model, "can_generate", None)
    if config is None or not callable(able) or getattr(config, "is_encoder_decoder", False) or not able():
        return False
    return "input_ids" in inspect.signature(model.forward).parameters and hasattr(config, "get_text_config")


def places(model: nn.Module) -> int:
    """The longest sequence that a network of `transformers` has places for."""
    config: Any = getattr(model, "config", None)
    config = config.get_text_config() if hasattr(config, "get_text_config") else config
    known = (getattr(config, name, None) for name in ("max_position_embeddings", "n_positions"))
    return min((n for n in known if isinstance(n, int) and n > 0), default=2**31)


def picked(p: Tensor, generator: torch.Generator) -> Tensor:
    """One index for each row of probabilities p, (B, V) → (B, 1): the first whose sum passes a number drawn evenly.

    Example:
        >>> picked(torch.eye(3), torch.Generator().manual_seed(0)).flatten().tolist()
        [0, 1, 2]
    """
    sums = p.cumsum(-1)
    level = torch.rand(len(p), 1, generator=generator).to(p.device) * sums[:, -1:]
    return torch.searchsorted(sums, level, right=True).clamp(max=p.shape[1] - 1)


@torch.inference_mode()
def sample(
    model: nn.Module,
    starts: Tensor,
    length: int,
    generator: torch.Generator,
    temperature: float = 1.0,
    step: Callable[[int], None] | None = None,
) -> Tensor:
    """Continue sequences token by token, with a cache of keys and values.

    `picked` draws one number for each sequence and step, so that the generator decides everything. The tokens that end
    a text are never drawn.

    Args:
        model: a causal language model. starts: (B, s) indices. length: of the sequences in the end.
        generator: of the numbers. temperature: that logits are divided by. step: called with the length reached.

    Returns:
        (B, length) indices.
    """
    device = next(model.parameters()).device
    more = {"logits_to_keep": 1} if "logits_to_keep" in inspect.signature(model.forward).parameters else {}
    config: Any = model.config
    ends = _ends(config)
    written, new, past = [starts], starts.to(device), None
    for at in range(starts.shape[1], length):
        answer: Any = model(input_ids=new, past_key_values=past, use_cache=True, **more)
        past = answer.past_key_values
        scores = answer.logits[:, -1].float() / temperature
        scores[:, ends] = float("-inf")
        new = picked(scores.softmax(-1), generator)
        written.append(new.cpu())
        if step:
            step(at + 1)
    return torch.cat(written, 1)


def _fast(model: nn.Module) -> nn.Module:
    """The model in eval mode, in bfloat16 where the processor has instructions for it: its text is as good."""
    parameter = next(model.parameters())
    if parameter.dtype == torch.float32 and narrow(parameter.device.type):
        return copy.deepcopy(model).to(torch.bfloat16).eval()
    return copy.deepcopy(model).eval() if model.training else model


def _first(config: Any) -> int | None:
    """The token that begins a text, if there is one."""
    first = getattr(config.get_text_config(), "bos_token_id", None)
    return int(first) if isinstance(first, int) else None


def _ends(config: Any) -> list[int]:
    """The tokens that end a text."""
    end = getattr(config.get_text_config(), "eos_token_id", None)
    every = end if isinstance(end, (list, tuple)) else (end,)
    return [one for one in every if one is not None]

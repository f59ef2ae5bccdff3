"""Text that a causal language model writes itself: no data, and yet inputs of the kind that it was trained on.

Every sequence starts with the model's own beginning-of-text token and one token drawn evenly from the vocabulary, so
that few start alike, or with an opening, the first words of a text of some kind; and goes on as the model samples.

Source: 01-maths §4, self-generated; Liu et al. 2023, LLM-QAT, arXiv:2305.17888, there for quantisation.
"""

from __future__ import annotations

import copy
import inspect
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from coreprune.errors import InvalidInputError
from coreprune.model.tensors import narrow
from coreprune.priors.text import around, lines_of, places, tokenizer_of

__all__ = ["Generated", "fast", "picked", "sample", "writes"]

OPENINGS = Path(__file__).with_name("openings.txt")


@dataclass(frozen=True)
class Generated:
    """The prior of a causal language model's own text.

    Attributes:
        tokens: how many to sample in all.
        length: of one sequence.
        temperature: that logits are divided by; of several, sequences take one each in turn.
        together: sequences that are sampled at a time.
        starts: what sequences start with: "openings" for the 128 that come with the package, a line for each kind of
            text; a file with a line for each, or the lines themselves; without, a token drawn evenly. Of a line at most
            half a sequence is taken, and every line comes as often as the others, but for one time.
        tokenizer: of `transformers`, for `starts`; by default the one that lies beside the model's weights.

    Example:
        >>> import coreprune as cp
        >>> print(cp.Generated(tokens=4096).said)
        text that the model sampled itself (4,096 tokens, temperature 1)
        >>> print(cp.Generated(starts="openings", temperature=(0.8, 1.0)).said)
        text that the model sampled itself from the openings of coreprune (32,768 tokens, temperatures 0.8, 1)

        With a model of `transformers`: ``cp.prune(model, ids, remove=0.1, prior=cp.Generated(tokens=4096))``.
    """

    tokens: int = 32_768
    length: int = 128
    temperature: float | Sequence[float] = 1.0
    together: int = 64
    starts: str | Path | Sequence[str] | None = None
    tokenizer: Any = None

    @property
    def data_used(self) -> bool:
        """Whether sequences start with lines of the user's."""
        return self.starts is not None and self.starts != "openings"

    @property
    def said(self) -> str:
        """The prior in words."""
        many = self._temperatures()
        heat = f"temperature{'s' * (len(many) > 1)} {', '.join(f'{one:g}' for one in many)}"
        return f"text that the model sampled itself{self._from()} ({self.tokens:,} tokens, {heat})"

    def draw(self, model: nn.Module, seed: int, progress: Callable[[int, int, str], None] | None = None) -> Tensor:
        """Token indices, (sequences, length).

        Args:
            model: a causal language model of `transformers`; not changed.
            seed: of every choice. progress: called with tokens done, in all, and what is done.

        Raises:
            InvalidInputError: the model is none, numbers that cannot be meant, or lines that cannot be read.
        """
        if not writes(model):
            raise InvalidInputError(
                f"{type(model).__name__} cannot write text of its own: give another prior, such as 'text' or 'noise'"
            )
        heat = self._temperatures()
        hot = bool(heat) and all(one > 0 for one in heat)
        if self.length < 4 or self.tokens < self.length or self.together < 1 or not hot:
            raise InvalidInputError(f"{self} was given: give at least 4 tokens in a sequence, and one sequence")
        length = min(self.length, places(model))
        generator = torch.Generator().manual_seed(seed)
        starts = self._starts(model, length, generator)
        each = torch.tensor(heat)[torch.arange(len(starts)) % len(heat), None]
        writer = fast(model)
        parts: list[Tensor] = []
        for part, own in zip(starts.split(self.together), each.split(self.together), strict=True):
            done = sum(one.numel() for one in parts)

            def step(reached: int, done: int = done, rows: int = len(part)) -> None:
                if progress:
                    progress(done + rows * reached, len(starts) * length, "writing text")

            parts.append(sample(writer, part, length, generator, own if len(heat) > 1 else heat[0], step))
        return torch.cat(parts)

    def sampled(self, model: nn.Module, seed: int = 0) -> int:
        """How many tokens `draw` samples: all but those that begin a sequence."""
        length = min(self.length, places(model))
        starts = self._starts(model, length, torch.Generator().manual_seed(seed))
        return len(starts) * length - int((starts >= 0).sum())

    def _temperatures(self) -> tuple[float, ...]:
        return tuple(self.temperature) if isinstance(self.temperature, Sequence) else (self.temperature,)

    def _from(self) -> str:
        """Where sequences start, in words."""
        if self.starts is None:
            return ""
        if self.starts == "openings":
            return " from the openings of coreprune"
        if isinstance(self.starts, (str, Path)):
            return f" from the lines of {Path(self.starts).name}"
        return f" from {len(self.starts)} lines given"

    def _starts(self, model: nn.Module, length: int, generator: torch.Generator) -> Tensor:
        """What each sequence begins with, (sequences, s); shorter ones end in −1."""
        config: Any = model.config
        count = -(-self.tokens // length)
        if self.starts is None:
            size, first = int(config.get_text_config().vocab_size), _first(config)
            starts = torch.randint(size, (count, 1), generator=generator)
            return starts if first is None else torch.cat([torch.full((count, 1), first), starts], 1)
        lines = self._lines(model, length)
        rounds = [torch.randperm(len(lines), generator=generator) for _ in range(-(-count // len(lines)))]
        chosen = [lines[i] for i in torch.cat(rounds)[:count].tolist()]
        return nn.utils.rnn.pad_sequence(chosen, batch_first=True, padding_value=-1)

    def _lines(self, model: nn.Module, length: int) -> list[Tensor]:
        """The openings as tokens, begun as the tokenizer begins a text."""
        tokenizer = self.tokenizer if self.tokenizer is not None else tokenizer_of(model)
        if tokenizer is None:
            raise InvalidInputError(
                f"no tokenizer lies beside {type(model).__name__}, for the lines that its text is to start with: give "
                "prior=Generated(starts=..., tokenizer=...), or leave starts out"
            )
        own = OPENINGS if self.starts == "openings" else self.starts
        text = lines_of(Path(own)) if isinstance(own, (str, Path)) else [line for line in own or () if line.strip()]
        bare = tokenizer(text, add_special_tokens=False, verbose=False)["input_ids"] if text else []
        before, config = around(tokenizer)[0], getattr(model, "config", None)
        most = max(1, length // 2 - len(before))
        lines = [torch.tensor([*before, *one[:most]][:length]) for one in bare if one]
        size = int(config.get_text_config().vocab_size) if config is not None else 0
        if not lines or max(int(one.max()) for one in lines) >= size:
            found = "no line with a token" if not lines else f"tokens past the model's {size:,}"
            raise InvalidInputError(f"starts= has {found}: give lines of text, and the model's own tokenizer")
        return lines


def writes(model: nn.Module) -> bool:
    """Whether a network is a causal language model of `transformers`, whose own text can be sampled."""
    config = getattr(model, "config", None)
    able = getattr(model, "can_generate", None)
    if config is None or not callable(able) or getattr(config, "is_encoder_decoder", False) or not able():
        return False
    return "input_ids" in inspect.signature(model.forward).parameters and hasattr(config, "get_text_config")


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
    temperature: float | Tensor = 1.0,
    step: Callable[[int], None] | None = None,
) -> Tensor:
    """Continue sequences token by token, with a cache of keys and values.

    `picked` draws one number for each sequence and step, so that the generator decides everything. The tokens that end
    a text are never drawn.

    Args:
        model: a causal language model. starts: (B, s) indices; rows that begin with fewer end in −1.
        length: of the sequences in the end. generator: of the numbers.
        temperature: that logits are divided by; (B, 1) for one of each row. step: called with the length reached.

    Returns:
        (B, length) indices.
    """
    device = next(model.parameters()).device
    more = {"logits_to_keep": 1} if "logits_to_keep" in inspect.signature(model.forward).parameters else {}
    config: Any = model.config
    ends = _ends(config)
    heat = temperature.to(device) if isinstance(temperature, Tensor) else temperature
    given = int((starts >= 0).all(0).sum())  # by every row
    written, new, past = [starts[:, :given]], starts[:, :given].to(device), None
    for at in range(given, length):
        answer: Any = model(input_ids=new, past_key_values=past, use_cache=True, **more)
        past = answer.past_key_values
        scores = answer.logits[:, -1].float() / heat
        scores[:, ends] = float("-inf")
        new = picked(scores.softmax(-1), generator)
        if at < starts.shape[1]:
            own = starts[:, at : at + 1].to(device)
            new = torch.where(own < 0, new, own)
        written.append(new.cpu())
        if step:
            step(at + 1)
    return torch.cat(written, 1)


def fast(model: nn.Module) -> nn.Module:
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

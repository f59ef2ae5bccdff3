"""Text that a masked language model fills in itself: no data, and yet tokens of the kind that it was trained on.

Every sequence starts as masks alone, as random tokens or as generic text. A sweep goes through its places in a random
order, a share of them at a time: these are masked, the model says what each could be, and one is drawn. With one place
at a time this is Gibbs sampling, whose law is the model's where its conditional laws have a joint one; places that are
drawn together do not see each other.

Source: Wang and Cho 2019, BERT has a mouth, and it must speak, arXiv:1902.04094.
"""

from __future__ import annotations

import inspect
import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from coreprune.errors import InvalidInputError
from coreprune.priors.generated import fast, picked
from coreprune.priors.text import Text, around, places, tokenizer_of
from coreprune.priors.zipf import Zipf, ordinary

__all__ = ["MaskFilled", "fills"]

STARTS = ("masks", "zipf", "text")


@dataclass(frozen=True)
class MaskFilled:
    """The prior of what a masked language model puts in the place of masks.

    Special tokens are not drawn; those that the tokenizer puts around a text stay around every sequence.

    Attributes:
        tokens: how many in all.
        length: of one sequence, with the tokens that begin and end one.
        sweeps: how often each place is drawn.
        share: of a sequence's places that are drawn at a time.
        temperature: that logits are divided by.
        start: "masks", "zipf" for `Zipf`, or "text" for `Text`, which needs a tokenizer.
        tokenizer: of `transformers`; by default the one that lies beside the model's weights.
        together: sequences that are filled at a time.

    Example:
        >>> import coreprune as cp
        >>> print(cp.MaskFilled(tokens=4096).said)
        tokens that the model filled into masks (4,096 tokens, 3 sweeps from masks, temperature 1)
    """

    tokens: int = 16_384
    length: int = 64
    sweeps: int = 3
    share: float = 0.15
    temperature: float = 1.0
    start: str = "masks"
    tokenizer: Any = None
    together: int = 32

    @property
    def said(self) -> str:
        """The prior in words."""
        how = f"{self.sweeps} sweep{'s' * (self.sweeps != 1)} from {self.start}, temperature {self.temperature:g}"
        return f"tokens that the model filled into masks ({self.tokens:,} tokens, {how})"

    def draw(self, model: nn.Module, seed: int, progress: Callable[[int, int, str], None] | None = None) -> Tensor:
        """Token indices, (sequences, length).

        Args:
            model: a masked language model of `transformers`; not changed.
            seed: of every choice. progress: called with tokens done, in all, and what is done.

        Raises:
            InvalidInputError: the model is none, or numbers that cannot be meant.
        """
        tokenizer = self.tokenizer if self.tokenizer is not None else tokenizer_of(model)
        mask = self._mask(model, tokenizer)
        config: Any = model.config
        rows, length = int(config.get_text_config().vocab_size), min(self.length, places(model))
        if self.start == "text":
            ids = Text(tokenizer=tokenizer, tokens=self.tokens, length=length).draw(model)
        else:
            ids = Zipf(self.tokens, length).draw(model, rows, seed, tokenizer=tokenizer)
        before, after = around(tokenizer) if tokenizer is not None else ([], [])
        free = torch.arange(len(before), ids.shape[1] - len(after))
        if self.start == "masks":
            ids[:, free] = mask
        generator = torch.Generator().manual_seed(seed)
        filler, allowed = fast(model), ordinary(model, tokenizer, rows)
        allowed = allowed[allowed != mask]
        parts: list[Tensor] = []
        for part in ids.split(self.together):
            done = sum(one.numel() for one in parts)

            def step(share: float, done: int = done, size: int = part.numel()) -> None:
                if progress:
                    progress(done + round(share * size), ids.numel(), "filling masks")

            parts.append(self._filled(filler, part, (free, allowed, mask), generator, step))
        return torch.cat(parts)

    @torch.inference_mode()
    def _filled(
        self,
        model: nn.Module,
        ids: Tensor,
        among: tuple[Tensor, Tensor, int],
        generator: torch.Generator,
        step: Callable[[float], None],
    ) -> Tensor:
        """Sequences after all sweeps; `among` are the places that are drawn, the tokens that can be, and the mask."""
        free, allowed, mask = among
        device = next(model.parameters()).device
        each = max(1, round(self.share * len(free)))
        row = torch.arange(len(ids))[:, None]
        for sweep in range(self.sweeps):
            order = free[torch.rand(len(ids), len(free), generator=generator).argsort(1)]
            for done, at in enumerate(groups := order.split(each, 1)):
                logits = _logits(model(input_ids=ids.scatter(1, at, mask).to(device)), ids, int(allowed[-1]))
                scores = logits[row.to(device), at.to(device)].flatten(0, 1)[:, allowed.to(device)].float()
                new = picked((scores / self.temperature).softmax(-1), generator).cpu()
                ids = ids.scatter(1, at, allowed[new].view(at.shape))
                step((sweep + (done + 1) / len(groups)) / self.sweeps)
        return ids

    def _mask(self, model: nn.Module, tokenizer: Any) -> int:
        """The token that stands for a masked one.

        Raises:
            InvalidInputError: the model fills no masks, nobody knows the token, or numbers that cannot be meant.
        """
        if not fills(model):
            raise InvalidInputError(
                f"{type(model).__name__} has no head that fills masks: load its class for masked language modelling, "
                "or give another prior, such as 'text' or 'zipf'"
            )
        whole = self.tokens >= self.length >= 1 and self.sweeps >= 1 and self.together >= 1
        if not whole or not (0 < self.share <= 1 and 0 < self.temperature < math.inf) or self.start not in STARTS:
            raise InvalidInputError(
                f"{self} was given: give one sequence and one sweep at least, a share up to 1, a positive temperature, "
                f"and a start out of {', '.join(STARTS)}"
            )
        known = (getattr(one, "mask_token_id", None) for one in (tokenizer, getattr(model, "config", None)))
        mask = next((one for one in known if isinstance(one, int)), None)
        if mask is None:
            raise InvalidInputError(
                f"neither a tokenizer nor the configuration of {type(model).__name__} names a mask token: give "
                "prior=MaskFilled(tokenizer=...)"
            )
        return mask


def fills(model: nn.Module) -> bool:
    """Whether a network is a masked language model of `transformers`: a head over the vocabulary, and no writer."""
    config, head = getattr(model, "config", None), getattr(model, "get_output_embeddings", None)
    able = getattr(model, "can_generate", None)
    if not hasattr(config, "get_text_config") or getattr(config, "is_encoder_decoder", False) or not callable(head):
        return False
    if head() is None or (callable(able) and able()):
        return False
    return "input_ids" in inspect.signature(model.forward).parameters


def _logits(answer: Any, ids: Tensor, last: int) -> Tensor:
    """What the head says of each place, (B, L, V)."""
    found = (getattr(answer, name, None) for name in ("logits", "prediction_logits"))
    logits = next((one for one in found if isinstance(one, Tensor)), None)
    if logits is None or logits.shape[:-1] != ids.shape or logits.shape[-1] <= last:
        raise InvalidInputError(
            "the network does not put out a number for each token of the vocabulary at each place: give another prior, "
            "such as 'text' or 'zipf'"
        )
    return logits

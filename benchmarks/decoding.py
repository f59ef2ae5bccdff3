"""How many tokens a second a language model reads and writes, on one thread."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor

__all__ = ["reading", "speeds", "writing"]

#: rounds over all networks; tokens read before writing, and written
ROUNDS, START, WRITTEN = 5, 64, 64


def reading(model: Any, ids: Tensor) -> float:
    """Tokens for each CPU second when a batch is read at once, (B, length)."""
    start = time.process_time()
    with torch.inference_mode():
        model(input_ids=ids, use_cache=False)
    return ids.numel() / (time.process_time() - start)


def writing(model: Any, ids: Tensor, count: int = WRITTEN) -> float:
    """Tokens for each CPU second, one sequence after its start has been read, each token the likeliest, with the cache."""
    with torch.inference_mode():
        answer = model(input_ids=ids, use_cache=True)
        start = time.process_time()
        for _ in range(count):
            new = answer.logits[:, -1:].argmax(-1)
            answer = model(input_ids=new, past_key_values=answer.past_key_values, use_cache=True)
        return count / (time.process_time() - start)


def speeds(
    networks: Mapping[str, Any], ids: Tensor, progress: Callable[[int], None] | None = None, rounds: int = ROUNDS
) -> dict[str, dict[str, Any]]:
    """Medians over rounds in which the networks take turns, so that a busy machine is as busy for all.

    Args:
        networks: by name. ids: what is read, (B, length); its first START tokens begin what is written.
        progress: called with rounds done. rounds: how many.

    Returns:
        By name "read" and "written", tokens for each CPU second, and the single rounds.
    """
    found: dict[str, dict[str, Any]] = {name: {"reads": [], "writes": []} for name in networks}
    for i in range(rounds):
        for name, model in networks.items():
            found[name]["reads"].append(reading(model, ids))
            found[name]["writes"].append(writing(model, ids[:1, :START]))
        if progress:
            progress(i + 1)
    for one in found.values():
        one |= {"read": statistics.median(one["reads"]), "written": statistics.median(one["writes"])}
    return found

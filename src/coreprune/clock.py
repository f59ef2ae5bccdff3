"""How long each stage of the work took. It is of the machine and the moment, so that nothing that is saved holds it."""

from __future__ import annotations

import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field

__all__ = ["Clock", "Timing"]


@dataclass(frozen=True)
class Timing:
    """Seconds of every stage.

    Attributes:
        seconds: by stage, in the order in which they began; a stage within another counts for itself alone.
        tokens: that a stage wrote, where it wrote some.

    Example:
        >>> print(Timing({"writing text": 3.0, "observing": 9.0}, {"writing text": 600}))
        took 12 s: observing 75%, writing text 25% (200 tokens/s)
    """

    seconds: Mapping[str, float] = field(default_factory=dict)
    tokens: Mapping[str, int] = field(default_factory=dict)

    @property
    def whole(self) -> float:
        """Seconds of all stages."""
        return sum(self.seconds.values())

    @property
    def shares(self) -> dict[str, float]:
        """The share of every stage, the largest first."""
        order = sorted(self.seconds.items(), key=lambda item: -item[1])
        return {stage: spent / self.whole if self.whole else 0.0 for stage, spent in order}

    @property
    def tokens_per_second(self) -> dict[str, float]:
        """Of the stages that wrote tokens."""
        return {stage: n / self.seconds[stage] for stage, n in self.tokens.items() if n and self.seconds[stage] > 0}

    def __add__(self, other: Timing) -> Timing:
        """Both, one after the other."""
        seconds, tokens = dict(self.seconds), dict(self.tokens)
        for stage, spent in other.seconds.items():
            seconds[stage] = seconds.get(stage, 0.0) + spent
        for stage, count in other.tokens.items():
            tokens[stage] = tokens.get(stage, 0) + count
        return Timing(seconds, tokens)

    def __str__(self) -> str:
        """One line; what took less than a hundredth is left out."""
        rates = self.tokens_per_second
        parts = [
            f"{stage} {share:.0%}" + (f" ({rates[stage]:,.0f} tokens/s)" if stage in rates else "")
            for stage, share in self.shares.items()
            if share >= 0.01
        ]
        return f"took {self.whole:.3g} s: {', '.join(parts)}" if parts else "took no time"

    def to_json(self) -> dict[str, object]:
        """As plain data."""
        return {
            "seconds": dict(self.seconds),
            "shares": self.shares,
            "tokens": dict(self.tokens),
            "tokens_per_second": self.tokens_per_second,
        }


class Clock:
    """Takes the time of stages, which may lie within each other."""

    def __init__(self) -> None:
        """It runs from now on."""
        self._start = self._last = time.perf_counter()
        self._open: list[str] = []
        self._seconds: dict[str, float] = {}
        self._tokens: dict[str, int] = {}

    @contextmanager
    def stage(self, name: str) -> Iterator[None]:
        """What is done within is this stage; the one around it stands still."""
        self._pass()
        self._open.append(name)
        self._seconds.setdefault(name, 0.0)
        try:
            yield
        finally:
            self._pass()
            self._open.pop()

    def wrote(self, tokens: int) -> None:
        """So many tokens were written in the stage that is open."""
        self._tokens[self._open[-1]] = self._tokens.get(self._open[-1], 0) + tokens

    def timing(self, *, rest: bool = False) -> Timing:
        """What was spent until now.

        Args:
            rest: also give what no stage took since the clock runs, as "other".
        """
        seconds = dict(self._seconds)
        if rest:
            seconds["other"] = max(time.perf_counter() - self._start - sum(seconds.values()), 0.0)
        return Timing(seconds, dict(self._tokens))

    def _pass(self) -> None:
        """Give the time since the last turn to the stage that is open."""
        now = time.perf_counter()
        if self._open:
            self._seconds[self._open[-1]] += now - self._last
        self._last = now

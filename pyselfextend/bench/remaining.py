"""How long the rest of a benchmark will take. Pure: imports nothing native."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable

import numpy as np

from .plan import Configuration, Step

__all__ = ["Remaining"]


class Remaining:
    """Learns what a token costs each configuration, and adds up what is left.

    A token costs a constant part and one in proportion to its depth. What was never seen costs what the most similar of
    what was seen does.
    """

    def __init__(self) -> None:
        self._seen: dict[tuple[bool, Configuration, int], list[tuple[float, float]]] = defaultdict(list)

    def learn(self, step: Step, n_tokens: int, seconds: float) -> None:
        """Say what ``n_tokens`` at ``step.depth`` took."""
        self._seen[_key(step)].append((step.depth + n_tokens / 2, seconds / n_tokens))

    def seconds(self, steps: Iterable[Step]) -> float | None:
        """What ``steps`` will take. None: not known yet."""
        total = 0.0
        lines: dict[tuple[bool, Configuration, int], tuple[float, float] | None] = {}
        for step in steps:
            key = _key(step)
            if key not in lines:
                lines[key] = self._line(key)
            line = lines[key]
            if line is None:
                return None
            constant, slope = line
            total += step.n_tokens * max(0.0, constant + slope * (step.depth + step.n_tokens / 2))
        return total

    def _line(self, key: tuple[bool, Configuration, int]) -> tuple[float, float] | None:
        """Seconds for a token: the constant part, and that for each token before it."""
        is_decode, configuration, _ = key
        similar = [seen for seen in self._seen if seen[0] == is_decode]
        same = [seen for seen in similar if seen[1] == configuration]
        points = self._seen.get(key) or [point for seen in (same or similar) for point in self._seen[seen]]
        if not points:
            return None
        depths, costs = np.array(points).T
        slope, constant = np.polyfit(depths, costs, 1) if np.ptp(depths) > 0 else (0.0, 0.0)
        if slope <= 0:  # noise: nothing gets cheaper with depth
            return float(costs.mean()), 0.0
        return float(constant), float(slope)


def _key(step: Step) -> tuple[bool, Configuration, int]:
    return step.phase == "decode", step.configuration, step.threads

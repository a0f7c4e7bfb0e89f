"""In what order requests are best asked, and how far that has gone. Pure."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

from ..eval.cases import Tokens
from ..eval.sharing import plan_readings

__all__ = ["Step", "plan_steps"]


@dataclass(frozen=True)
class Step:
    """A request when its turn has come."""

    index: int
    """Its place among all, as they were given."""

    n_keep: int
    """Tokens of its prompt's beginning that are kept for those after it."""

    again: bool
    """Whether the next one has the same prompt."""

    n_read: int
    """Tokens of its prompt that are evaluated, about; the others have been already."""


def plan_steps(prompts: Sequence[Tokens], more: Callable[[int], Tokens]) -> list[Step]:
    """An order in which prompts with the same beginning stand beside each other, and equal ones first of all.

    Args:
        prompts: what is read before anything is asked.
        more: orders requests with equal prompts, by their index.
    """
    order = sorted(range(len(prompts)), key=lambda i: (prompts[i], more(i)))
    distinct = list(dict.fromkeys(prompts[i] for i in order))
    readings = dict(zip(distinct, plan_readings(distinct), strict=True))
    steps: list[Step] = []
    for i, following in zip(order, [*order[1:], None], strict=True):
        again = following is not None and prompts[i] == prompts[following]
        reading = readings.pop(prompts[i], None)
        if reading is None:
            steps.append(Step(i, 0, again, 0))
        else:
            steps.append(Step(i, reading.n_keep, again, len(prompts[i]) - reading.n_shared))
    return steps

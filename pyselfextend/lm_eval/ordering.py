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


def plan_steps(prompts: Sequence[Tokens], groups: Sequence[int], more: Callable[[int], Tokens]) -> list[Step]:
    """An order in which prompts with the same beginning stand beside each other, and equal ones first of all.

    Args:
        prompts: what is read before anything is asked.
        groups: the group size that each is read with; only those with the same one share anything.
        more: orders requests with equal prompts, by their index.
    """
    read = list(zip(groups, prompts, strict=True))
    order = sorted(range(len(read)), key=lambda i: (read[i], more(i)))
    distinct = list(dict.fromkeys(read[i] for i in order))
    planned = plan_readings([prompt for _, prompt in distinct], [group for group, _ in distinct])
    readings = dict(zip(distinct, planned, strict=True))
    steps: list[Step] = []
    for i, following in zip(order, [*order[1:], None], strict=True):
        again = following is not None and read[i] == read[following]
        reading = readings.pop(read[i], None)
        if reading is None:
            steps.append(Step(i, 0, again, 0))
        else:
            steps.append(Step(i, reading.n_keep, again, len(prompts[i]) - reading.n_shared))
    return steps

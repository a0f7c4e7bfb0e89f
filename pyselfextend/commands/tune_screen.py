"""What ``pyselfextend tune`` prints: every group at every length, what is chosen, and what the rule would have cost."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path

from rich.console import Console
from rich.table import Table
from rich.text import Text

from ..config import SETTING_MAX
from ..groups import GroupPolicy
from ..terminal import printable
from ..tune.choice import Cell, Choice, Mean, table
from ..tune.plan import Plan

__all__ = ["show"]


def show(console: Console, plan: Plan, choices: Sequence[Choice], path: Path, *, is_found: bool) -> None:
    """Print it.

    Args:
        path: the result's file.
        is_found: whether ``auto`` looks there.
    """
    name = printable(plan.model.path.name, lines=False)
    console.print(Text(f"{name}, trained on {plan.model.n_ctx_train} tokens, ga_w={plan.ga_w}", style="bold"))
    console.print(_table(choices))
    console.print("log p: of the right keys, mean and 95% interval, in nats. Perplexity: * is within 1% of the lowest.")
    console.print()
    policy = GroupPolicy(plan.model.n_ctx_train, plan.ga_w, SETTING_MAX, table(choices))
    limits = [
        f"{'plain' if ga_n == 1 else ga_n} up to {min(longest, plan.lengths[-1])}"
        for ga_n, longest in policy.steps(plan.lengths[-1])
    ]
    console.print(f"auto: {', '.join(limits)} tokens; beyond by the authors' rule, and no less")
    for line in _against_rule(choices):
        console.print(line)
    place = f"result in {printable(str(path), lines=False)}"
    console.print(place if is_found else f"{place}, where auto does not look", soft_wrap=True)


def _table(choices: Sequence[Choice]) -> Table:
    found = Table()
    for heading in ("tokens", "ga_n", "log p", "95%", "right", "perplexity"):
        found.add_column(heading, justify="right", no_wrap=True)
    found.add_column(no_wrap=True)
    for choice in choices:
        found.add_section()
        for cell in choice.cells:
            found.add_row(
                str(cell.n_tokens),
                str(cell.ga_n),
                f"{cell.log_p.value:.2f}",
                _interval(cell.log_p),
                f"{cell.n_right}/{cell.n_keys}",
                f"{cell.perplexity:.{2 if cell.perplexity < 1000 else 0}f}{'*' if cell.counts else ' '}",
                _mark(cell, choice),
                style="bold" if cell is choice.chosen else "",
            )
    return found


def _interval(mean: Mean) -> str:
    return f"{mean.low:.2f} to {mean.high:.2f}"


def _mark(cell: Cell, choice: Choice) -> str:
    words = ["chosen"] * (cell is choice.chosen) + ["rule"] * (cell is choice.rule)
    return ", ".join(words)


def _against_rule(choices: Sequence[Choice]) -> Iterator[str]:
    """What the built-in rule would have cost."""
    others = [choice for choice in choices if choice.chosen.ga_n != choice.ga_n_rule]
    if not others:
        yield "The built-in rule chooses the same."
    for choice in others:
        text = f"At {choice.n_tokens} tokens the built-in rule takes {choice.ga_n_rule}"
        if choice.rule is None or choice.gain is None:
            yield f"{text}, which was not measured."
            continue
        gain, ratio = choice.gain, choice.rule.perplexity / choice.chosen.perplexity
        yield (
            f"{text}: log p {-gain.value:+.2f} ({-gain.high:+.2f} to {-gain.low:+.2f}), perplexity "
            f"{100 * (ratio - 1):+.1f}%."
        )

"""``pyselfextend eval``: a group with a command for each task, and one that makes a report again."""

from __future__ import annotations

import click

from .._command import LazyGroup

__all__ = ["COMMANDS", "command"]

#: A command is ``command`` in the module of its name here.
COMMANDS = {
    "passkey": "Find a number among sentences that say nothing.",
    "niah": "Find a sentence hidden in prose.",
    "kv": "Find the value of a key among many: lost in the middle.",
    "ruler": "Six tasks of RULER: needles, tracing variables, counting words.",
    "ppl": "Perplexity over the length of the context.",
    "short": "What extending costs inside the trained window.",
    "longbench": "LongBench, from its published files.",
    "leval": "L-Eval, from its published files.",
    "report": "Make the report of results again, of one run or of several.",
}


@click.group(
    cls=LazyGroup,
    lazy={name: (f"{__name__}.{name}", about) for name, about in COMMANDS.items()},
    epilog="'pyselfextend eval TASK --help' describes one of them.",
)
def command() -> None:
    """Measure how good models are at texts longer than their trained window.

    Compares several models, such as quantizations of one, types of cache and settings: the plain model, SelfExtend with
    pairs of group size and neighbour window, and YaRN, linear and NTK-aware scaling as llama.cpp has them. All of them
    are asked the same. Results are kept as they come; an interrupted run goes on when it is called again.
    """

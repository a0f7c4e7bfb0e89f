"""Multi-hop tracing: ``vt`` of RULER (``variable_tracking.py`` there).

One chain: a variable that is given a number, and four more, each given the one before it. The assignments stand in
order, in front of random lines about grass, sky and sun. A solved example with names of three letters comes first.

- The example has ten lines: what the published limit of 500 tokens gives with common tokenizers. There it is the same
  for all samples except for its names; here its number and its places are new as well.
- No name comes twice in a prompt, none is "VAR", and the two numbers differ; there they are drawn without such care.
- With five lines of noise or fewer RULER puts assignments between sentences. Here six lines are the least.
"""

from __future__ import annotations

import itertools
import random
import string
from collections.abc import Sequence

from ...cases import Tokenizer, Tokens
from ...prompt import filled, n_items, question
from .asked import Asked, each_sample

__all__ = ["variable_tracking"]

HEAD = "Memorize and track the chain(s) of variable assignment hidden in the following text.\n\n"
NOISE = "The grass is green. The sky is blue. The sun is yellow. Here we go. There and back again.\n"
QUESTION = "\nQuestion: Find all variables that are assigned the value {value} in the text above."
ANSWER = (
    " Answer: According to the chain(s) of variable assignment in the text above, {n} variables are assgined the value "
    "{value}, they are: "  # as published, with the slip in "assigned" and the space at the end
)

N_HOPS = 4
N_NAMES = N_HOPS + 1
N_EXAMPLE_LINES = 10


def _variable_tracking(tokenizer: Tokenizer, seed: str, n_tokens: int) -> Asked:
    rng = random.Random(seed)
    value, example_value = (str(number) for number in rng.sample(range(10000, 99999), 2))
    names, example_names = random_names(rng, 5), random_names(rng, 3)
    example = (
        HEAD
        + context(example_names, example_value, N_EXAMPLE_LINES, rng)
        + QUESTION.format(value=example_value)
        + ANSWER.format(n=N_NAMES, value=example_value)
        + " "
        + " ".join(example_names)
        + "\n\n\n\n"
    )
    behind = question(tokenizer, QUESTION.format(value=value), ANSWER.format(n=N_NAMES, value=value))

    def front(n: int) -> Tokens:
        places = random.Random(f"{seed} places")  # for every n the same draws: the text hardly depends on the tokenizer
        return tokenizer.before + tokenizer.plain(example + HEAD + context(names, value, n, places))

    n = n_items("RULER's vt", n_tokens, lambda n: len(front(n)) + len(behind), N_NAMES + 1)
    return Asked(filled(tokenizer, front(n), behind, n_tokens), names)


def random_names(rng: random.Random, n_letters: int) -> tuple[str, ...]:
    """The names of a chain."""
    names: dict[str, None] = {}  # an ordered set
    while len(names) < N_NAMES:
        name = "".join(rng.choices(string.ascii_uppercase, k=n_letters))
        if name != "VAR":
            names[name] = None
    return tuple(names)


def context(names: Sequence[str], value: str, n_lines: int, rng: random.Random) -> str:
    """Lines of noise with the assignments of a chain in front of some of them."""
    assignments = [
        f"VAR {names[0]} = {value}",
        *(f"VAR {b} = VAR {a} " for a, b in itertools.pairwise(names)),
    ]
    parts = [NOISE] * n_lines
    for i, place in enumerate(sorted(rng.sample(range(n_lines), len(assignments)))):
        parts.insert(place + i, assignments[i])
    return " ".join(parts)


variable_tracking = each_sample(_variable_tracking)

"""Aggregation: ``cwe`` and ``fwe`` of RULER (``common_words_extraction.py`` and ``freq_words_extraction.py`` there).

``cwe``: a numbered list in which ten words come often and the others seldom: 30 times and 3 times in prompts of 4,096
tokens or more, 6 times and once below. A solved example with 40 words, 10 times and 3 times (below: 20, 3 and 1), comes
first.

- The example stands in the user's message, as everything does. In RULER's own chat templates it is a turn of its own.
- No word of the example is in the list; there it can be.
- RULER ends at its last word, however long the prompt was to be. Here that is an error.

``fwe``: words of six random letters, the k-th most frequent of them ``N / (zeta(2) * k ** 2)`` times, rounded down; the
most frequent one is replaced by "..." and to be ignored, the next three are asked for. There is a word for each 50
tokens of the prompt, though five at least, and N is as large as fits. It is 53 at least: from there on the third of the
three always comes more often than the next word; in shorter prompts there can be a tie.
"""

from __future__ import annotations

import math
import random
import string
from collections.abc import Sequence

from ....errors import EvalError
from ...cases import Tokenizer, Tokens
from ...prompt import filled, n_items, question
from .asked import Asked, each_sample
from .words import words

__all__ = ["common_words", "frequent_words"]

CWE_HEAD = (
    "Below is a numbered list of words. In these words, some appear more often than others. "
    "Memorize the ones that appear most often.\n"
)
CWE_QUESTION = "\nQuestion: What are the 10 most common words in the above list?"
CWE_ANSWER = " Answer: The top 10 words that appear most often in the list are:"

N_COMMON = 10

FWE_HEAD = (
    "Read the following coded text and track the frequency of each coded word. "
    "Find the three most frequently appeared coded words. "
)
FWE_QUESTION = (
    "\nQuestion: Do not provide any explanation. Please ignore the dots '....'. "
    "What are the three most frequently appeared words in the above coded text?"
)
FWE_ANSWER = " Answer: According to the coded text above, the three most frequently appeared words are:"

N_LETTERS = 6
ZETA_2 = math.pi**2 / 6
LEAST_N = 53


def _common_words(tokenizer: Tokenizer, seed: str, n_tokens: int) -> Asked:
    rng = random.Random(seed)
    drawn = list(words("noun", "adjective", "verb"))
    rng.shuffle(drawn)
    n_example, often_example, seldom_example, often, seldom = (
        (20, 3, 1, 6, 1) if n_tokens < 4096 else (40, 10, 3, 30, 3)
    )
    drawn, of_example = drawn[:-n_example], drawn[-n_example:]
    example = (
        CWE_HEAD
        + numbered(repeated(of_example, often_example, seldom_example, rng))
        + CWE_QUESTION
        + CWE_ANSWER
        + numbered(of_example[:N_COMMON])
        + "\n"
    )
    behind = question(tokenizer, CWE_QUESTION, CWE_ANSWER)

    def front(n: int) -> Tokens:
        order = random.Random(f"{seed} order")
        return tokenizer.before + tokenizer.plain(
            example + CWE_HEAD + numbered(repeated(drawn[:n], often, seldom, order))
        )

    def n_needed(n: int) -> int:
        return len(front(n)) + len(behind)

    n = n_items("RULER's cwe", n_tokens, n_needed, N_COMMON + 1, len(drawn))
    if n == len(drawn) and n_needed(n) < n_tokens:
        raise EvalError(
            f"{n_tokens} tokens are too many for RULER's cwe: all its {n} words take {n_needed(n)} with this model; "
            "give shorter lengths, or leave cwe out"
        )
    return Asked(filled(tokenizer, front(n), behind, n_tokens), tuple(drawn[:N_COMMON]))


def repeated(drawn: Sequence[str], often: int, seldom: int, rng: random.Random) -> list[str]:
    """The common words, which are the first ones, and the others as often as they should come, in random order."""
    found = [*drawn[:N_COMMON]] * often + [*drawn[N_COMMON:]] * seldom
    rng.shuffle(found)
    return found


def numbered(items: Sequence[str]) -> str:
    """A numbered list in one line."""
    return " ".join(f"{i}. {item}" for i, item in enumerate(items, 1))


def _frequent_words(tokenizer: Tokenizer, seed: str, n_tokens: int) -> Asked:
    vocabulary = ["...", *coded_words(random.Random(seed), max(n_tokens // 50, 5) - 1)]
    behind = question(tokenizer, FWE_QUESTION, FWE_ANSWER)

    def front(n: int) -> Tokens:
        text = [word for word, count in zip(vocabulary, counts(n, len(vocabulary)), strict=True) for _ in range(count)]
        random.Random(f"{seed} order").shuffle(text)
        return tokenizer.before + tokenizer.plain(FWE_HEAD + " ".join(text))

    n = n_items("RULER's fwe", n_tokens, lambda n: len(front(n)) + len(behind), LEAST_N)
    return Asked(filled(tokenizer, front(n), behind, n_tokens), tuple(vocabulary[1:4]))


def coded_words(rng: random.Random, n: int) -> list[str]:
    """Different words of random letters."""
    found: dict[str, None] = {}  # an ordered set
    while len(found) < n:
        found["".join(rng.choices(string.ascii_lowercase, k=N_LETTERS))] = None
    return list(found)


def counts(n: int, n_words: int) -> list[int]:
    """How often each word comes: a zeta distribution with the exponent 2."""
    return [int(n / (ZETA_2 * k**2)) for k in range(1, n_words + 1)]


common_words = each_sample(_common_words)
frequent_words = each_sample(_frequent_words)

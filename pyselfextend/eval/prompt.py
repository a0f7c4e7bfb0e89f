"""Prompts of an exact length. Pure: imports nothing native."""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Callable, Iterable

from ..errors import EvalError
from .cases import Tokenizer, Tokens

__all__ = ["check_fractions", "check_length", "filled", "n_items", "pad", "question", "right_answer", "with_needle"]


def check_fractions(what: str, values: Iterable[float]) -> None:
    """See that each of some places is between 0 and 1.

    Raises:
        EvalError: one is not.
    """
    for value in values:
        if not 0 <= value <= 1:
            raise EvalError(f"the {what} is {value}; it must be between 0 and 1")


def check_length(what: str, n_tokens: int, n_needed: int) -> int:
    """The tokens that are left of ``n_tokens``.

    Raises:
        EvalError: there are fewer than ``n_needed``.
    """
    if n_tokens < n_needed:
        raise EvalError(f"{n_tokens} tokens are too few for {what}; at least {n_needed} are needed")
    return n_tokens - n_needed


def with_needle(
    tokenizer: Tokenizer,
    what: str,
    head: str,
    haystack: Callable[[int], Tokens],
    needle: str,
    tail: str,
    answer_prefix: str,
    n_tokens: int,
    depth: float,
    places: Callable[[Tokens, int], int] | None = None,
) -> tuple[Tokens, int]:
    """A prompt of exactly ``n_tokens`` tokens with a needle in a haystack, in the frame of the chat template.

    Args:
        what: what this is, for the error message.
        head, tail: the text before and after the haystack.
        haystack: its first n tokens.
        answer_prefix: the beginning of the answer, behind the chat template.
        depth: where the needle goes, from 0 (before the haystack) to 1 (behind it).
        places: moves the needle, given the haystack and an index, to one where it may stand.

    Returns:
        The prompt, and the index in it at which the needle begins.

    Raises:
        EvalError: the length is too short.
    """
    before = tokenizer.before + tokenizer.plain(head)
    inside = tokenizer.plain(needle)
    behind = question(tokenizer, tail, answer_prefix)
    n_hay = check_length(what, n_tokens, len(before) + len(inside) + len(behind))
    hay = haystack(n_hay)
    place = round(depth * n_hay)
    if places is not None:
        place = places(hay, place)
    return before + hay[:place] + inside + hay[place:] + behind, len(before) + place


def question(tokenizer: Tokenizer, tail: str, answer_prefix: str = "") -> Tokens:
    """The end of a prompt: of the user's message and of the chat template's frame, and the beginning of the answer."""
    return tokenizer.plain(tail) + tokenizer.after + tokenizer.plain(answer_prefix)


def right_answer(tokenizer: Tokenizer, tail: str, answer_prefix: str, answer: str) -> Tokens:
    """The tokens of an answer as a model writes it behind ``question(tokenizer, tail, answer_prefix)``.

    A space comes first behind a word or a mark; none behind white space, such as the line break that ends the frame of
    many chat templates, or behind a special token.

    Tokens depend on what stands before them, and a prompt's are there already. As in lm-evaluation-harness the text
    before the answer, back to where the prompt began a new piece, is tokenized with the answer and without it, and what
    the answer adds is scored. Where a token spans both, the answer's own tokens are.
    """
    text = answer_prefix or (_text_at_end(tokenizer, tokenizer.after) if tokenizer.after else tail)
    if text and not text[-1].isspace():
        answer = f" {answer}"
    before, both = tokenizer.plain(text), tokenizer.plain(text + answer)
    return both[len(before) :] if both[: len(before)] == before else tokenizer.plain(answer)


def _text_at_end(tokenizer: Tokenizer, tokens: Tokens) -> str:
    """The text behind the last special token, which has none."""
    n = next((n for n, token in enumerate(reversed(tokens)) if not tokenizer.detokenize((token,))), len(tokens))
    return tokenizer.detokenize(tokens[len(tokens) - n :])


def n_items(what: str, n_tokens: int, n_needed: Callable[[int], int], least: int, most: int | None = None) -> int:
    """How many whole items fit into a prompt.

    Args:
        what: what the prompt is, for the error message.
        n_tokens: its length.
        n_needed: the tokens of a prompt with n items; it grows with n.
        least, most: bounds of the answer.

    Raises:
        EvalError: the length is too short for ``least``.
    """
    check_length(what, n_tokens, n_needed(least))
    most = n_tokens if most is None else most  # no item is without tokens
    low, high = least, 2 * least
    while high <= most and n_needed(high) <= n_tokens:
        low, high = high, 2 * high
    return low - 1 + bisect_right(range(low, min(high, most + 1)), n_tokens, key=n_needed)


def filled(tokenizer: Tokenizer, front: Tokens, behind: Tokens, n_tokens: int) -> Tokens:
    """A prompt of exactly ``n_tokens`` tokens, with line breaks between its text and its question: see ``pad``."""
    return front + pad(tokenizer, n_tokens - len(front) - len(behind)) + behind


def pad(tokenizer: Tokenizer, n_tokens: int) -> Tokens:
    """``n_tokens`` tokens that say nothing: line breaks. For haystacks of whole items, which leave a rest."""
    line_break = tokenizer.plain("\n")
    return (line_break * n_tokens)[:n_tokens]

"""What several benchmarks score by."""

from __future__ import annotations

import functools
import re
import string
from collections.abc import Callable, Sequence
from typing import Any

from ..._extras import need

__all__ = ["Metric", "best", "contains_all", "contains_any", "rouge_f", "squad_words", "word_f1"]

#: Takes the answer, the references, and for classifications the options. Returns a score from 0 to 1.
Metric = Callable[[str, Sequence[str], Sequence[str]], float]

#: Makes words of a text.
Split = Callable[[str], list[str]]

#: Removes what ``string.punctuation`` holds.
NO_PUNCTUATION = str.maketrans("", "", string.punctuation)


def contains_all(answer: str, references: Sequence[str], options: Sequence[str] = ()) -> float:
    """The share of the references that the answer holds, in any case.

    RULER's ``string_match_all`` (Hsieh et al., arXiv 2404.06654; scripts/eval/synthetic/constants.py). With one
    reference it is the exact retrieval of passkeys, needles and values.
    """
    return sum(reference.lower() in answer.lower() for reference in references) / len(references)


def contains_any(answer: str, references: Sequence[str], options: Sequence[str] = ()) -> float:
    """1 if the answer holds one of the references, in any case, otherwise 0: RULER's ``string_match_part``."""
    return float(any(reference.lower() in answer.lower() for reference in references))


def best(score: Callable[[str], float], references: Sequence[str]) -> float:
    """The best score over the references; 0 if there are none."""
    return max((score(reference) for reference in references), default=0.0)


def squad_words(text: str) -> list[str]:
    """The words of a text without punctuation and articles, in lower case.

    SQuAD's normalization (Rajpurkar et al., arXiv 1606.05250; ``normalize_answer`` of its evaluation script v1.1).
    """
    return without_articles(text.lower())


def without_articles(text: str) -> list[str]:
    """The words of a text without punctuation and without articles in lower case."""
    return re.sub(r"\b(a|an|the)\b", " ", text.translate(NO_PUNCTUATION)).split()


def word_f1(answer: str, reference: str, split: Split = squad_words) -> float:
    """The F-measure of the words that the answer and a reference have in common, as often as both have them.

    SQuAD's F1. It is ROUGE-1 over these words, which ``rouge_score`` computes.
    """
    return rouge_f("rouge1", answer, reference, split)


def rouge_f(kind: str, answer: str, reference: str, split: Split | None = None) -> float:
    """The F-measure of ROUGE (Lin, "ROUGE: A Package for Automatic Evaluation of Summaries", 2004) by ``rouge_score``.

    Args:
        kind: ``rouge1``, ``rouge2`` or ``rougeL``.
        split: None for the library's own: runs of Latin letters and digits in lower case, not stemmed.
    """
    return float(_scorer(kind, split).score(reference, answer)[kind].fmeasure)


class _Splitter:
    """What ``rouge_score`` takes for a tokenizer."""

    def __init__(self, split: Split) -> None:
        self.tokenize = split


@functools.cache
def _scorer(kind: str, split: Split | None) -> Any:
    rouge_scorer = need("rouge_score.rouge_scorer", "eval")
    return rouge_scorer.RougeScorer([kind], tokenizer=None if split is None else _Splitter(split))

"""The metrics of LongBench (Bai et al., arXiv 2308.14508; THUDM/LongBench, LongBench/metrics.py and eval.py).

Each takes the best over the references, as eval.py does. eval.py multiplies by 100.
"""

from __future__ import annotations

import contextlib
import functools
import logging
import re
import string
import sys
import tempfile
import warnings
from collections.abc import Iterator, Sequence
from typing import Any

from ..._extras import need
from .common import Metric, best, word_f1

__all__ = [
    "classification",
    "code_sim",
    "count",
    "first_line",
    "qa_f1",
    "qa_f1_zh",
    "retrieval",
    "retrieval_zh",
    "rouge_l",
    "rouge_l_zh",
]

#: What is no part of a Chinese word; the list of metrics.py.
PUNCTUATION_ZH = string.punctuation + (
    "！？｡。＂＃＄％＆＇（）＊＋，－／：；＜＝＞＠［＼］＾＿｀｛｜｝～｟｠｢｣､、〃》「」『』【】〔〕〖〗〘〙〚〛〜〝〞〟〰〾〿–—‘’‛“”„‟…‧﹏."  # noqa: RUF001
)

NO_PUNCTUATION_ZH = str.maketrans("", "", PUNCTUATION_ZH)


def first_line(metric: Metric) -> Metric:
    """A metric that looks at the first line of an answer: what eval.py does for trec, triviaqa, samsum and lsht."""

    def score(answer: str, references: Sequence[str], options: Sequence[str] = ()) -> float:
        return metric(answer.lstrip("\n").split("\n")[0], references, options)

    return score


def qa_f1(answer: str, references: Sequence[str], options: Sequence[str] = ()) -> float:
    """F1 of the words, with SQuAD's normalization: ``qa_f1_score``."""
    return best(lambda reference: word_f1(answer, reference), references)


def qa_f1_zh(answer: str, references: Sequence[str], options: Sequence[str] = ()) -> float:
    """F1 of the words that jieba finds in Chinese, without punctuation: ``qa_f1_zh_score``."""
    return best(lambda reference: word_f1(answer, reference, _words_zh), references)


def rouge_l(answer: str, references: Sequence[str], options: Sequence[str] = ()) -> float:
    """F-measure of ROUGE-L on the level of summaries, by the library ``rouge``: ``rouge_score``.

    Sentences end at full stops, words at spaces. 0 where either text has none.
    """
    return best(lambda reference: _rouge_l(answer, reference), references)


def rouge_l_zh(answer: str, references: Sequence[str], options: Sequence[str] = ()) -> float:
    """``rouge_l`` of the words that jieba finds in Chinese: ``rouge_zh_score``."""
    spaced = " ".join(_segmenter().cut(answer))
    return best(lambda reference: _rouge_l(spaced, " ".join(_segmenter().cut(reference))), references)


def classification(answer: str, references: Sequence[str], options: Sequence[str] = ()) -> float:
    """One divided by the number of classes that the answer names, if the right one is among them.

    ``classification_score``. A class whose name is a part of the right one's does not count.
    """

    def score(reference: str) -> float:
        named = [option for option in options if option in answer]
        i = 0
        while i < len(named):
            if named[i] in reference and named[i] != reference:
                named.remove(named[i])
            i += 1  # also behind a name that was removed: metrics.py removes while it iterates, which skips one
        return 1 / len(named) if reference in named else 0.0

    return best(score, references)


def retrieval(answer: str, references: Sequence[str], options: Sequence[str] = ()) -> float:
    """The share of the numbers in the answer that are the paragraph's: ``retrieval_score``."""
    return best(lambda reference: _share_of_numbers(answer, _paragraph(r"Paragraph (\d+)", reference)), references)


def retrieval_zh(answer: str, references: Sequence[str], options: Sequence[str] = ()) -> float:
    """``retrieval`` for Chinese: ``retrieval_zh_score``."""
    return best(lambda reference: _share_of_numbers(answer, _paragraph(r"段落(\d+)", reference)), references)


def count(answer: str, references: Sequence[str], options: Sequence[str] = ()) -> float:
    """The share of the numbers in the answer that are the right one: ``count_score``."""
    return best(lambda reference: _share_of_numbers(answer, reference), references)


def code_sim(answer: str, references: Sequence[str], options: Sequence[str] = ()) -> float:
    """Edit similarity of the first line that holds no comment and no back quote, in whole percent: ``code_sim_score``.

    The ratio of ``fuzzywuzzy`` with python-Levenshtein: 1 minus the insertions and deletions that make one text of the
    other, divided by the length of both. (Without python-Levenshtein it falls back on ``difflib``, which finds other
    matches.)
    """
    lines = answer.lstrip("\n").split("\n")
    line = next((line for line in lines if not any(mark in line for mark in ("`", "#", "//"))), "")
    return best(lambda reference: _ratio(line, reference), references)


def _ratio(a: str, b: str) -> float:
    """Counted in whole characters: the same halves are rounded as there, to even percents."""
    if not a and not b:
        return 1.0
    alike: int = need("rapidfuzz.distance", "eval").Indel.similarity(a, b)
    return round(100 * (alike / (len(a) + len(b)))) / 100


def _paragraph(pattern: str, reference: str) -> str:
    found = re.search(pattern, reference)
    return found[1] if found else reference


def _share_of_numbers(answer: str, number: str) -> float:
    numbers = re.findall(r"\d+", answer)
    return numbers.count(number) / len(numbers) if numbers else 0.0


def _rouge_l(answer: str, reference: str) -> float:
    rouge = need("rouge", "eval").Rouge(metrics=["rouge-l"], stats=["f"])
    try:
        with _recursion(len(answer.split()) + len(reference.split())):
            return float(rouge.get_scores(answer, reference)[0]["rouge-l"]["f"])
    except ValueError:  # no words, or nothing but full stops
        return 0.0


@contextlib.contextmanager
def _recursion(depth: int) -> Iterator[None]:
    """Let Python recur deeper. ``rouge`` walks through two sentences recursively; Chinese ones, without ".", are long.

    metrics.py scores 0 where Python's limit is reached, which depends on who calls.
    """
    limit = sys.getrecursionlimit()
    sys.setrecursionlimit(limit + depth)
    try:
        yield
    finally:
        sys.setrecursionlimit(limit)


def _words_zh(text: str) -> list[str]:
    words = ("".join(word.lower().translate(NO_PUNCTUATION_ZH).split()) for word in _segmenter().cut(text))
    return [word for word in words if word]


@functools.cache
def _segmenter() -> Any:
    """jieba with its own dictionary. It would print what it does, and leave a file in the folder for temporary ones."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # Python warns of escape sequences in its source
        jieba = need("jieba", "eval")
    jieba.setLogLevel(logging.ERROR)
    segmenter = jieba.Tokenizer()
    with tempfile.TemporaryDirectory() as folder:
        segmenter.tmp_dir = folder
        segmenter.initialize()
    return segmenter

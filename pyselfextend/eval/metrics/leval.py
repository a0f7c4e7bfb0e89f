"""The metrics of L-Eval.

An et al., arXiv 2307.11088; OpenLMLab/LEval, Evaluation/auto_eval.py, em.py, f1.py and rouge.py. Closed-ended tasks are
scored by exact match of what auto_eval.py makes of the answer and of the reference.
"""

from __future__ import annotations

import re
from collections.abc import Sequence

from .common import best, rouge_f, without_articles, word_f1

__all__ = [
    "choice",
    "choices",
    "code",
    "exact_match",
    "f1",
    "math",
    "rouge_1",
    "rouge_2",
    "rouge_l",
    "true_false",
]


def exact_match(answer: str, references: Sequence[str], options: Sequence[str] = ()) -> float:
    """em.py: letters A to D must be the same, and some of them score 0.25; numbers must be equal; a text must occur.

    Of topic_retrieval_longchat, as it is.
    """
    return best(lambda reference: _exact_match(answer, reference), references)


def choice(answer: str, references: Sequence[str], options: Sequence[str] = ()) -> float:
    """The first of the letters A to D in the answer. Of quality and tpo: ``process_output_mc``.

    "A" where there is none, as there; but an empty answer is wrong.
    """
    letter = answer if answer in "ABCD" else next((c for c in answer if c in "ABCD"), "A")
    return best(lambda reference: _exact_match(letter if answer.strip() else "None", _gold(reference)), references)


def choices(answer: str, references: Sequence[str], options: Sequence[str] = ()) -> float:
    """Letters A to D at the beginning of the answer, or those before a space, a full stop or a bracket. Of coursera.

    ``process_output_mc``: at best all right ones and no other; some of the right ones score 0.25.
    """
    return best(lambda reference: _exact_match(_letters(answer), _gold(reference)), references)


def math(answer: str, references: Sequence[str], options: Sequence[str] = ()) -> float:
    """The number behind "The answer is", or the last one of the first paragraph, without fractions. Of gsm100.

    ``process_math``.
    """
    return best(lambda reference: _exact_match(_number(answer), _number(reference)), references)


def code(answer: str, references: Sequence[str], options: Sequence[str] = ()) -> float:
    """The words behind "the final output", or the last ones: as many as the reference has, and three. Of codeU.

    ``process_output_code``.
    """
    return best(lambda reference: _exact_match(_output(answer, reference), _plain_code(reference)), references)


def true_false(answer: str, references: Sequence[str], options: Sequence[str] = ()) -> float:
    """Whether the first word of the answer that holds "true" or "false" says the same. Of sci_fi.

    ``process_output_judge``.
    """
    word = next((word for word in answer.lower().split() if "true" in word or "false" in word), "")
    said = "true" if "true" in word else "false" if "false" in word else "<error>"
    return best(lambda reference: _exact_match(said, reference.strip().lower()), references)


def f1(answer: str, references: Sequence[str], options: Sequence[str] = ()) -> float:
    """F1 of the words, with SQuAD's normalization: f1.py."""
    return best(lambda reference: word_f1(answer, reference), references)


def rouge_1(answer: str, references: Sequence[str], options: Sequence[str] = ()) -> float:
    """F-measure of ROUGE-1, not stemmed: rouge.py."""
    return best(lambda reference: rouge_f("rouge1", answer, reference), references)


def rouge_2(answer: str, references: Sequence[str], options: Sequence[str] = ()) -> float:
    """F-measure of ROUGE-2, not stemmed: rouge.py."""
    return best(lambda reference: rouge_f("rouge2", answer, reference), references)


def rouge_l(answer: str, references: Sequence[str], options: Sequence[str] = ()) -> float:
    """F-measure of ROUGE-L, not stemmed: rouge.py."""
    return best(lambda reference: rouge_f("rougeL", answer, reference), references)


def _exact_match(answer: str, reference: str) -> float:
    wanted = " ".join(without_articles(reference))
    if set(wanted) <= set("ABCD"):
        found = " ".join(without_articles(answer))
        return 1.0 if found == wanted else 0.25 if set(found) <= set(wanted) else 0.0
    try:
        return float(float(answer) == float(reference))
    except ValueError:
        return float(reference.lower().replace(" ", "") in answer.lower().replace(" ", ""))


def _gold(reference: str) -> str:
    """The letters of the first word of a reference; "A" if it has none: ``process_gt_mc``."""
    first = (reference.split() or [""])[0]
    return re.sub("[^A-D]", "", first) or "A"


def _letters(answer: str) -> str:
    if not answer.strip():
        return "None"
    leading = answer[: len(answer) - len(answer.lstrip("ABCD"))]
    if len(leading) > 1:
        return "".join(sorted(set(leading)))
    rest = answer[len(leading) :].split("Question")[0]
    if found := {*leading, *re.findall(r"[A-D](?=[\s.)])", rest)}:
        return "".join(sorted(found))
    run = re.search("[A-D]+", rest)
    return run[0] if run else "A"


def _number(text: str) -> str:
    if match := re.search(r"The answer is (\S+)", text):
        word = match[1]
    else:
        words = text.split("\n\n")[0].split(" ")
        word = next((word for word in reversed(words) if any(c.isdigit() for c in word)), "")
    return "".join(c for c in word.split(".")[0] if c.isdigit())


def _output(answer: str, reference: str) -> str:
    n_words = len(reference.split()) + 3
    text = _plain_code(answer)
    for phrase in ("will be", "of the code", "is", "would be", "the value of", "the result of", "printed"):
        text = text.replace(phrase, "")
    _, marker, behind = text.rpartition("the final output")
    words = re.split(r"\s+", behind)
    return " ".join(words[:n_words] if marker else words[-n_words:])


def _plain_code(text: str) -> str:
    """Without what Python and NumPy print differently: ``process_gt_code``."""
    text = re.sub(r"\s+", " ", text)
    for mark in (",", "'", "\\", ".0"):
        text = text.replace(mark, "")
    return text.replace("] [", "][").replace("[ [", "[[").replace("] ]", "]]")

"""Metrics against definitions computed another way, over many random texts, and against other people's code."""

# ruff: noqa: RUF001  # Chinese punctuation
from __future__ import annotations

import functools
import re
import string
import subprocess
import sys
import tempfile
from collections import Counter
from collections.abc import Sequence
from pathlib import Path

import jieba
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from rouge import Rouge

from pyselfextend import MissingExtraError
from pyselfextend.eval.metrics import METRICS, common, longbench

MANY = settings(max_examples=200, deadline=None)

WORDS = ["the ", "an ", "a ", "The", "A", "cat", "Cat's ", "dog. ", "is ", "!", "-", " ", "\n", "12 ", "7", "é", ""]
ENGLISH = st.lists(st.sampled_from(WORDS), max_size=14).map("".join)
CHINESE = st.lists(
    st.sampled_from([*"我们喜欢北京大学生命科学研究起源下雨天", "。", "，", "the ", "GPT", " ", "\n", "12"]),
    max_size=30,
).map("".join)


@functools.cache
def chinese() -> jieba.Tokenizer:
    """jieba's words, set up apart from the code under test."""
    segmenter = jieba.Tokenizer()
    with tempfile.TemporaryDirectory() as folder:
        segmenter.tmp_dir = folder
        segmenter.initialize()
    return segmenter


def score(metric: str, answer: str, *references: str, options: Sequence[str] = ()) -> float:
    found = METRICS[metric](answer, references, options)
    assert isinstance(found, float)
    assert 0.0 <= found <= 1.0
    return found


# -- F1


def squad_words(text: str) -> list[str]:
    """Character by character, where the code under test uses a table and a regular expression."""
    kept = "".join(c for c in text.lower() if c not in string.punctuation)
    # An article is a run of word characters; it leaves a gap, as what it was joined to by other characters stays.
    runs = re.findall(r"\w+|\W", kept)
    return "".join(" " if run in ("a", "an", "the") else run for run in runs).split()


def bag_f1(answer: Sequence[str], reference: Sequence[str]) -> float:
    """F1 of two bags."""
    common_words = sum((Counter(answer) & Counter(reference)).values())
    if common_words == 0:
        return 0.0
    precision, recall = common_words / len(answer), common_words / len(reference)
    return 2 * precision * recall / (precision + recall)


@MANY
@given(ENGLISH, st.lists(ENGLISH, min_size=1, max_size=3))
def test_f1_is_that_of_bags_of_words(answer: str, references: list[str]) -> None:
    wanted = max(bag_f1(squad_words(answer), squad_words(reference)) for reference in references)
    assert score("longbench_qa_f1", answer, *references) == wanted
    assert score("leval_f1", answer, *references) == wanted


@MANY
@given(CHINESE, CHINESE)
def test_chinese_f1_is_that_of_bags_of_words(answer: str, reference: str) -> None:
    def words(text: str) -> list[str]:
        marks = set(longbench.PUNCTUATION_ZH)
        cut = ["".join(c for c in word.lower() if c not in marks and not c.isspace()) for word in chinese().cut(text)]
        return [word for word in cut if word]

    assert score("longbench_qa_f1_zh", answer, reference) == bag_f1(words(answer), words(reference))


def test_f1_of_known_answers() -> None:
    assert score("longbench_qa_f1", "The cat sat.", "a cat") == pytest.approx(2 / 3)
    assert score("longbench_qa_f1", "cat cat", "cat") == pytest.approx(2 / 3)  # as often as both have it
    assert score("longbench_qa_f1", "", "cat") == score("longbench_qa_f1", "the", "the") == 0.0
    assert score("longbench_qa_f1", "dog", "cat", "dog") == 1.0
    assert score("longbench_qa_f1_zh", "北京大学。", "北京大学") == 1.0
    assert score("longbench_qa_f1_zh", "", "北京大学") == 0.0


# -- ROUGE


def lcs(a: Sequence[str], b: Sequence[str]) -> int:
    """The length of the longest common subsequence."""
    row = [0] * (len(b) + 1)
    for x in a:
        row = functools.reduce(
            lambda done, j: [*done, row[j] + 1 if x == b[j] else max(row[j + 1], done[-1])], range(len(b)), [0]
        )
    return row[-1]


@MANY
@given(st.lists(st.sampled_from("abcdefghij"), unique=True), st.lists(st.sampled_from("abcdefghij"), unique=True))
def test_rouge_l_of_a_sentence_is_its_longest_common_subsequence(answer: list[str], reference: list[str]) -> None:
    n = lcs(answer, reference)
    wanted = 0.0
    if n:
        precision, recall = n / len(answer), n / len(reference)
        wanted = 2 * precision * recall / (precision + recall)
    # The library adds 1e-8 to the denominator.
    assert score("longbench_rouge_l", " ".join(answer), " ".join(reference)) == pytest.approx(wanted, abs=2e-8)
    assert score("leval_rouge_l", " ".join(answer), " ".join(reference)) == pytest.approx(wanted)


@MANY
@given(ENGLISH, st.lists(ENGLISH, min_size=1, max_size=3))
def test_rouge_l_is_what_eval_py_asks_the_library_for(answer: str, references: list[str]) -> None:
    def ask(reference: str) -> float:
        try:
            return float(Rouge().get_scores([answer], [reference], avg=True)["rouge-l"]["f"])
        except ValueError:
            return 0.0

    assert score("longbench_rouge_l", answer, *references) == max(map(ask, references))


@MANY
@given(CHINESE, CHINESE)
def test_chinese_rouge_l_is_that_of_words_with_spaces(answer: str, reference: str) -> None:
    spaced = [" ".join(chinese().cut(text)) for text in (answer, reference)]
    assert score("longbench_rouge_l_zh", answer, reference) == score("longbench_rouge_l", *spaced)


def test_rouge_l_of_long_sentences() -> None:
    limit = sys.getrecursionlimit()
    answer, reference = (" ".join(str(i) for i in range(n)) for n in (900, 1200))
    assert score("longbench_rouge_l", answer, reference) == pytest.approx(2 * 900 / 2100, abs=1e-7)
    assert sys.getrecursionlimit() == limit


@MANY
@given(ENGLISH, ENGLISH, st.sampled_from([1, 2]))
def test_rouge_n_is_f1_of_bags_of_n_grams(answer: str, reference: str, n: int) -> None:
    def n_grams(text: str) -> list[str]:
        words = re.findall("[a-z0-9]+", text.lower())
        return [" ".join(words[i : i + n]) for i in range(len(words) - n + 1)]

    assert score(f"leval_rouge_{n}", answer, reference) == bag_f1(n_grams(answer), n_grams(reference))


@pytest.mark.parametrize("answer", ["", " ", "...", ". ."])
@pytest.mark.parametrize("metric", [name for name in METRICS if "rouge" in name])
def test_rouge_of_nothing(metric: str, answer: str) -> None:
    assert score(metric, answer, "a reference.") == 0.0


# -- code


CODE = st.lists(st.sampled_from([*"abcxy=() ", "\n", "#", "//", "`"]), max_size=25).map("".join)


@MANY
@given(CODE, CODE)
def test_code_sim_is_the_edit_similarity_of_a_line(answer: str, reference: str) -> None:
    line = ""
    for candidate in answer.lstrip("\n").split("\n"):
        if not re.search("`|#|//", candidate):
            line = candidate
            break
    n = len(line) + len(reference)
    percent = round(100 * (2 * lcs(line, reference) / n)) if n else 100
    assert score("longbench_code_sim", answer, reference) == percent / 100


def test_code_sim_rounds_halves_to_even_percents() -> None:
    def alike(n: int) -> float:
        return score("longbench_code_sim", "abcdefgh"[:n] + "x" * (8 - n), "abcdefgh"[:n] + "y" * (8 - n))

    assert [alike(n) for n in (1, 3, 5, 7, 8)] == [0.12, 0.38, 0.62, 0.88, 1.0]  # of 12.5, 37.5, 62.5, 87.5, 100


def test_code_sim_skips_comments() -> None:
    assert score("longbench_code_sim", "\n\n```python\n# sum\n// sum\nreturn a + b\nc", "return a + b") == 1.0
    assert score("longbench_code_sim", "x = 1  # one", "x = 1") == 0.0


# -- classes, paragraphs, counts


@MANY
@given(st.lists(st.sampled_from(["number", "person", "place", "date", "  ", "\n"]), max_size=6).map("".join))
def test_classification_is_shared_among_the_classes_that_are_named(answer: str) -> None:
    classes = ["number", "person", "place", "date"]
    first = answer.strip("\n").partition("\n")[0]
    named = {name for name in classes if name in first}
    for right in classes:
        wanted = 1 / len(named) if right in named else 0.0
        assert score("longbench_classification_first_line", answer, right, options=classes) == wanted


def test_classes_within_the_right_one_do_not_count() -> None:
    def classify(answer: str, right: str, *options: str) -> float:
        return score("longbench_classification_first_line", answer, right, options=options)

    assert classify("place of birth", "place of birth", "place", "place of birth") == 1.0
    assert classify("place of birth", "place", "place", "place of birth") == 0.5
    # metrics.py takes names away while it goes through them, and so passes over the second of two.
    assert classify("place of birth", "place of birth", "place", "birth", "place of birth") == 0.5
    assert classify("\nplace\ndate", "date", "place", "date") == 0.0


NUMBERS = st.lists(st.sampled_from(["3", "13", "Paragraph ", "段落", " ", "3.3", "first"]), max_size=8).map("".join)


@MANY
@given(NUMBERS)
def test_retrieval_and_count_are_shares_of_numbers(answer: str) -> None:
    numbers = "".join(c if c.isdigit() else " " for c in answer).split()
    wanted = sum(number == "3" for number in numbers) / max(1, len(numbers))
    assert score("longbench_count", answer, "3") == wanted
    assert score("longbench_retrieval", answer, "Paragraph 3") == wanted
    assert score("longbench_retrieval_zh", answer, "段落3") == wanted


def test_only_the_first_line_counts() -> None:
    assert score("longbench_qa_f1_first_line", "\n\nParis\nQuestion: and now?", "Paris") == 1.0
    assert score("longbench_rouge_l_first_line", "a walk\nDialogue: b", "a walk") == pytest.approx(1.0)
    assert score("longbench_qa_f1_first_line", " \nParis", "Paris") == 0.0  # a space is a line


# -- L-Eval


@pytest.mark.parametrize(
    ("metric", "answer", "reference", "wanted"),
    [
        ("leval_choice", "B", "B", 1.0),
        ("leval_choice", "(B) because", "B. a text", 1.0),
        ("leval_choice", "Answer: B", "B", 0.0),  # the first capital among A to D is that of "Answer"
        ("leval_choice", "the second", "A", 1.0),  # a guess
        ("leval_choice", " ", "A", 0.0),
        ("leval_choice", "BC", "B", 0.0),
        ("leval_choices", "ABC", "ABC", 1.0),
        ("leval_choices", "CBA", "ABC", 1.0),
        ("leval_choices", "AC", "ABC", 0.25),
        ("leval_choices", "AD", "ABC", 0.0),
        ("leval_choices", "A. one, C. two", "AC", 1.0),
        ("leval_choices", "The answers are A, B and D.", "BD", 1.0),  # a letter before a comma is none
        ("leval_choices", "I say ABD, Question 2: C.", "ABD", 1.0),
        ("leval_choices", "", "A", 0.0),
        ("leval_choices", "none of them", "A", 1.0),  # a guess
        ("leval_math", "so 3 + 4 = 7.\nThe answer is $1,234.50\n\nQuestion: 9", "1234", 1.0),
        ("leval_math", "He has 12 apples and 18.0 pears left", "18", 1.0),
        ("leval_math", "18\n\n20", "18", 1.0),
        ("leval_math", "eighteen", "18", 0.0),
        ("leval_math", "", "18", 0.0),
        ("leval_code", "So the final output will be [[1, 2], [3, 4]]", "[[1 2] [3 4]]", 1.0),
        ("leval_code", "[1.0, 2.0]\nThat is the final output: [1. 2.] and then much more text of it", "[1. 2.]", 1.0),
        ("leval_code", "we print 7 now, after which many more words come in the end", "7", 0.0),
        ("leval_code", "", "7", 0.0),
        ("leval_true_false", "True.", "true", 1.0),
        ("leval_true_false", "It is FALSE, not true", "False", 1.0),
        ("leval_true_false", "untrue", "true", 1.0),  # a word that holds it
        ("leval_true_false", "maybe", "true", 0.0),
        ("leval_exact_match", "The topic is the Role of  Art.", "the role of art", 1.0),
        ("leval_exact_match", "art", "the role of art", 0.0),
        ("leval_exact_match", "3.0", "3", 1.0),
        ("leval_exact_match", "the 3", "3", 1.0),
        ("leval_exact_match", "", "3", 0.0),
    ],
)
def test_exact_match_of_answers(metric: str, answer: str, reference: str, wanted: float) -> None:
    assert score(metric, answer, reference) == wanted


@MANY
@given(st.text("ABCDE .)x", max_size=8), st.sampled_from("ABCD"))
def test_the_first_letter_is_the_choice(answer: str, right: str) -> None:
    letters = [c for c in answer if c in "ABCD"]
    if answer not in "ABCD":
        assert score("leval_choice", answer, right) == float((letters or ["A" if answer.strip() else ""])[0] == right)


@MANY
@given(st.sets(st.sampled_from("ABCD"), min_size=1), st.sets(st.sampled_from("ABCD"), min_size=1))
def test_some_of_the_right_choices_are_a_quarter(chosen: set[str], right: set[str]) -> None:
    answer, reference = ("".join(sorted(letters)) for letters in (chosen, right))
    wanted = 1.0 if chosen == right else 0.25 if chosen < right else 0.0
    assert score("leval_choices", answer, reference) == wanted
    assert score("leval_choices", "I choose " + " ".join(f"{letter})" for letter in chosen), reference) == wanted


# -- other people's code, where it is installed


@pytest.mark.parametrize(
    ("metric", "theirs", "texts"),
    [
        ("longbench_qa_f1", "qa_f1_score", ENGLISH),
        ("longbench_qa_f1_zh", "qa_f1_zh_score", CHINESE),
        ("longbench_rouge_l", "rouge_score", ENGLISH),
        ("longbench_rouge_l_zh", "rouge_zh_score", CHINESE),
        ("longbench_count", "count_score", NUMBERS),
    ],
)
def test_against_the_port_in_lm_evaluation_harness(metric: str, theirs: str, texts: st.SearchStrategy[str]) -> None:
    pytest.importorskip("fuzzywuzzy", reason="lm_eval's port of LongBench imports fuzzywuzzy")
    from lm_eval.tasks.longbench import metrics as port

    @MANY
    @given(texts, texts)
    def compare(answer: str, reference: str) -> None:
        assert score(metric, answer, reference) == getattr(port, theirs)(answer, reference)

    compare()


# -- what is imported, and what is left behind


LIBRARIES = {"rouge", "rouge_score", "rapidfuzz", "jieba", "nltk"}


def imported(code: str) -> set[str]:
    """The libraries that a program has imported."""
    code += f"\nimport sys\nprint(*({LIBRARIES!r} & set(sys.modules)))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=120, check=True)
    assert done.stderr == ""
    return set(done.stdout.split())


def test_libraries_are_imported_when_a_metric_needs_them() -> None:
    start = "from pyselfextend.eval.metrics import METRICS\n"
    assert imported(start + "METRICS['contains_all']('a', ('a',), ())") == set()
    assert imported(start + "METRICS['longbench_rouge_l']('a', ('a',), ())") == {"rouge"}
    assert imported(start + "METRICS['longbench_code_sim']('a', ('a',), ())") == {"rapidfuzz"}
    assert "jieba" not in imported(start + "METRICS['longbench_qa_f1']('a', ('a',), ())")
    assert "jieba" in imported(start + "METRICS['longbench_rouge_l_zh']('a', ('a',), ())")  # and prints nothing


def test_jieba_leaves_no_file(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    longbench._segmenter.cache_clear()
    assert score("longbench_qa_f1_zh", "北京大学", "北京大学") == 1.0
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    ("metric", "library"),
    [
        ("longbench_rouge_l", "rouge"),
        ("longbench_code_sim", "rapidfuzz"),
        ("longbench_qa_f1_zh", "jieba"),
        ("leval_f1", "rouge_score"),
    ],
)
def test_a_library_that_is_missing(monkeypatch: pytest.MonkeyPatch, metric: str, library: str) -> None:
    class Missing:
        """Says of the library what Python says of one that is not installed."""

        def find_spec(self, name: str, path: object = None, target: object = None) -> None:
            if name == library:
                raise ModuleNotFoundError(f"No module named {name!r}", name=name)

    for cached in (longbench._segmenter, common._scorer):
        cached.cache_clear()
    for module in [name for name in sys.modules if name.partition(".")[0] == library]:
        monkeypatch.delitem(sys.modules, module)
    monkeypatch.setattr(sys, "meta_path", [Missing(), *sys.meta_path])
    wanted = rf"^this needs {library}, which is not installed; install it with: pip install 'pyselfextend\[eval\]'$"
    with pytest.raises(MissingExtraError, match=wanted):
        score(metric, "an answer", "a reference")
    for cached in (longbench._segmenter, common._scorer):
        cached.cache_clear()

"""RULER's tasks: prompts solved by reading them, compared with lm-evaluation-harness's port, lengths, sharing."""

from __future__ import annotations

import importlib
import itertools
import random
import re
import sys
import types
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from eval_helpers import CHAT, characters, under_hash_seed

from pyselfextend import EvalError
from pyselfextend.errors import MissingExtraError
from pyselfextend.eval.cases import Case, Generate, Tokenizer
from pyselfextend.eval.metrics import METRICS
from pyselfextend.eval.model import EvalModel
from pyselfextend.eval.run import evaluate
from pyselfextend.eval.settings import Rope, Setting
from pyselfextend.eval.sharing import plan_readings, shared_prefix
from pyselfextend.eval.tasks.ruler import SUBTASKS, Ruler, aggregation, retrieval
from pyselfextend.eval.tasks.ruler.words import words

#: Long enough for all of them where a token is a character: cwe takes 10 * 30 + 3 words, and an example.
LENGTHS = (9000, 12345)


@pytest.fixture(scope="module")
def tokenizer(tiny_model: Path) -> Iterator[Tokenizer]:
    with EvalModel(tiny_model, Setting("plain"), Rope.of(tiny_model), 64) as model:
        yield model.tokenizer()


@pytest.fixture(scope="module")
def port(tmp_path_factory: pytest.TempPathFactory) -> Iterator[dict[str, Any]]:
    """The modules of lm-evaluation-harness's port of RULER.

    They import transformers for a class of tokenizers, which is not needed here, download a file for nltk unless there
    is one, and combine all adjectives with all nouns, which takes half a gigabyte: here with some.
    """
    nltk, wonderwords = importlib.import_module("nltk"), importlib.import_module("wonderwords")
    importlib.import_module("datasets")  # it looks for transformers, and must not find the stand-in
    data = tmp_path_factory.mktemp("nltk")
    (data / "tokenizers" / "punkt_tab").mkdir(parents=True)
    stand_in = types.ModuleType("transformers")
    stand_in.AutoTokenizer = None  # type: ignore[attr-defined]
    before = set(sys.modules)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(nltk.data, "path", [str(data)])
        patch.setitem(sys.modules, "transformers", stand_in)
        names = ("common_utils", "vt_utils", "cwe_utils", "fwe_utils")
        modules = {name: importlib.import_module(f"lm_eval.tasks.ruler.{name}") for name in names}
        some = wonderwords.RandomWord(
            nouns=["boat", "top-hat", "zoo"], adjectives=["ad hoc", "big", "wide-eyed"], verbs=["be"]
        )
        patch.setattr(wonderwords, "RandomWord", lambda: some)
        for name in ("prepare_niah", "niah_utils"):
            modules[name] = importlib.import_module(f"lm_eval.tasks.ruler.{name}")
    yield modules
    for name in set(sys.modules) - before:
        if name.startswith("lm_eval.tasks.ruler"):
            del sys.modules[name]


class Characters:
    """What the port takes for a tokenizer."""

    def __call__(self, text: str) -> types.SimpleNamespace:
        return types.SimpleNamespace(input_ids=list(text))


def query(case: Case) -> Generate:
    assert isinstance(case.query, Generate)
    return case.query


def cases(subtask: str, tokenizer: Tokenizer | None = None, **options: Any) -> list[Case]:
    task = Ruler(**{"lengths": LENGTHS, "subtasks": (subtask,), "samples": 4, **options})
    return list(task.cases(tokenizer or characters()))


def text(case: Case) -> str:
    return characters().detokenize(query(case).prompt)


def parts(case: Case) -> tuple[str, str]:
    """The user's message without the line breaks that fill it up, and the beginning of the answer."""
    before, answer = text(case).removeprefix(CHAT[0]).split(CHAT[1])
    front, _, question = before.rpartition("\n")
    return front.rstrip("\n") + "\n" * (case.axes["subtask"] == "vt") + "\n" + question, answer


# -- solvers: they know the task and the prompt's text, and nothing else


def solve_needles(prompt: str) -> list[str]:
    pairs = re.findall(r"One of the special magic \w+s for (\S+(?: hoc-\S+)?) is: ([\w-]+)\.", prompt)
    assert len(dict(pairs)) == len({value for _, value in pairs}) == len(pairs)  # none like the one that is asked for
    (asked,) = re.findall(r"What is the special magic \w+ for (.*) mentioned in the provided text\?", prompt)
    return [dict(pairs)[asked]]


def solve_variables(prompt: str) -> list[str]:
    prompt = prompt[prompt.rindex("Memorize and track") :]
    values = dict(re.findall(r"VAR ([A-Z]+) = (?:VAR )?([A-Z]+|[0-9]+)\b", prompt))
    (asked,) = re.findall(r"assigned the value ([0-9]+) in the text above", prompt)

    def resolve(value: str) -> str:
        return value if value.isdigit() else resolve(values[value])

    return [name for name in values if resolve(name) == asked]


def solve_common_words(prompt: str) -> list[str]:
    return [word for word, _ in Counter(numbered_list(prompt)[-1]).most_common(10)]


def numbered_list(prompt: str) -> list[list[str]]:
    """The lists in a prompt of cwe."""
    found = []
    for listed in re.findall(r"appear most often\.\s+(1\. .*?)\s+Question:", prompt, re.DOTALL):
        items = re.split(r"(?:^|\s+)(\d+)\. ", listed)[1:]
        assert [int(number) for number in items[::2]] == list(range(1, len(items) // 2 + 1))
        found.append(items[1::2])
    return found


def solve_frequent_words(prompt: str) -> list[str]:
    return [word for word, _ in coded_counts(prompt).most_common(3)]


def coded_counts(prompt: str) -> Counter[str]:
    (coded,) = re.findall(r"appeared coded words\.\s+(.*?)\s+Question:", prompt, re.DOTALL)
    found = Counter(coded.split())
    assert found.most_common(1)[0][0] == "..."
    del found["..."]
    return found


SOLVERS: dict[str, Callable[[str], list[str]]] = {
    "niah_single_1": solve_needles,
    "niah_multikey_2": solve_needles,
    "niah_multikey_3": solve_needles,
    "vt": solve_variables,
    "cwe": solve_common_words,
    "fwe": solve_frequent_words,
}


@pytest.mark.parametrize("subtask", SUBTASKS)
def test_who_reads_the_prompt_knows_the_answer(subtask: str, tokenizer: Tokenizer) -> None:
    assert set(SOLVERS) == set(SUBTASKS)
    for spelled in (characters(), tokenizer):
        for case in cases(subtask, spelled, samples=2):
            asked = query(case)
            solved = SOLVERS[subtask](spelled.detokenize(asked.prompt))
            assert sorted(solved) == sorted(asked.references)
            assert METRICS[asked.metric](f" {' '.join(solved)}.", asked.references, ()) == 1.0
            assert METRICS[asked.metric](" I don't know.", asked.references, ()) == 0.0


@pytest.mark.parametrize("subtask", SUBTASKS)
def test_a_needle_s_value_is_the_one_right_answer(subtask: str) -> None:
    for case in cases(subtask):
        gold = characters().detokenize(query(case).gold)
        assert gold == (f" {query(case).references[0]}" if subtask.startswith("niah") else "")


@pytest.mark.parametrize("subtask", SUBTASKS)
def test_every_combination_once_at_its_exact_length(subtask: str, tokenizer: Tokenizer) -> None:
    task = Ruler(LENGTHS, (subtask,), 2)
    for spelled in (characters(), tokenizer):
        found = list(task.cases(spelled))
        assert len({case.key for case in found}) == len(found) == 2 * 2
        assert all(len(query(case).prompt) == case.axes["n_tokens"] for case in found)
        assert {case.query.n_ctx for case in found} <= {n - max(LENGTHS) + task.n_ctx for n in LENGTHS}
        assert len({case.digest for case in found}) == len(found)


# -- against the port


def port_needle(port: dict[str, Any], monkeypatch: pytest.MonkeyPatch, case: Case) -> tuple[str, str]:
    """The prompt and the beginning of the answer that the port makes of the needles of one of ours."""
    module = port["prepare_niah"]
    lines = parts(case)[0].split("\n")[1:-1]
    (gold,) = query(case).references
    place = next(i for i, line in enumerate(lines) if line.endswith(f" is: {gold}."))
    needles = [
        re.findall(r"magic (\w+) for (.*) is: (.*)\.", line)[0]
        for line in (lines[place], *lines[:place], *lines[place + 1 :])
        if "magic" in line
    ]
    haystack = "repeat" if case.axes["subtask"] == "niah_single_1" else "needle"
    drawn = iter([part for _, key, value in needles for part in (key, value)])
    with monkeypatch.context() as patch:
        patch.setattr(module, "generate_random", lambda kind: next(drawn))
        patch.setattr(random, "sample", lambda population, k: [place] if len(population) > 1 else [0])
        prompt, answers, asked = module.generate_input_output(
            len(lines) - 1, module.get_haystack(haystack), type_haystack=haystack, template=port["niah_utils"].TEMPLATE,
            num_needle_k=1, type_needle_k="words", num_needle_v=1, type_needle_v=needles[0][0],
        )  # fmt: skip
    assert answers == [gold]
    assert next(drawn, None) is None
    assert place < len(lines) - 1  # never behind the last line
    kind = needles[0][0][:-1]
    (made,) = module.generate_samples(
        module.get_haystack("repeat"), Characters(), max_seq_length=2000, type_haystack="repeat", type_needle_k="words",
        type_needle_v=f"{kind}s", template=port["niah_utils"].TEMPLATE, num_samples=1,
    )  # fmt: skip
    (other,) = re.findall(r"for (.*) mentioned", made["gen_prefix"])
    return prompt, made["gen_prefix"].replace(other, asked)


@pytest.mark.parametrize("subtask", ["niah_single_1", "niah_multikey_2", "niah_multikey_3"])
def test_needles_are_those_of_the_port(subtask: str, port: dict[str, Any], monkeypatch: pytest.MonkeyPatch) -> None:
    for case in cases(subtask):
        prompt, answer = port_needle(port, monkeypatch, case)
        assert parts(case) == (prompt, f" {answer}")  # the repository has the space, the port strips it


def test_kinds_of_needles(port: dict[str, Any]) -> None:
    module = port["prepare_niah"]
    for kind, draw in (
        ("words", retrieval.random_key),
        ("numbers", retrieval.random_number),
        ("uuids", retrieval.random_uuid),
    ):
        mine = [draw(random.Random(seed)) for seed in range(100)]
        theirs = [module.generate_random(kind) for _ in range(100)]
        shape = {"words": ".+-.+", "numbers": "[1-9][0-9]{6}", "uuids": "[0-9a-f]{8}(-[0-9a-f]{4}){3}-[0-9a-f]{12}"}[
            kind
        ]
        assert all(re.fullmatch(shape, value) for value in mine + theirs)
    lists = importlib.import_module("wonderwords").RandomWord()
    for seed in range(1000):
        key = retrieval.random_key(random.Random(seed))
        assert any(
            key[:i] in lists.parts_of_speech["adjective"] and key[i + 1 :] in lists.parts_of_speech["noun"]
            for i, character in enumerate(key)
            if character == "-"
        )


def test_variables_are_those_of_the_port(port: dict[str, Any], monkeypatch: pytest.MonkeyPatch) -> None:
    module = port["vt_utils"]

    def theirs(prompt: str, is_icl: bool) -> tuple[str, list[str]]:
        """What the port makes of the chain in one of our prompts, and the chain."""
        lines = prompt.split("\n\n", 1)[1].split("\nQuestion:")[0].split("\n")[:-1]
        assignments = [
            (i, *re.findall(r"^ ?VAR (\w+) = (?:VAR )?(\w+) ", line)[0])
            for i, line in enumerate(spread(lines))
            if "VAR" in line
        ]
        names = [name for _, name, _ in assignments]
        chain = [
            f"VAR {names[0]} = {assignments[0][2]}",
            *(f"VAR {b} = VAR {a} " for a, b in itertools.pairwise(names)),
        ]
        with monkeypatch.context() as patch:
            patch.setattr(module, "generate_chains", lambda *args, **kwargs: ([names], [chain]))
            patch.setattr(
                random, "sample", lambda population, k: [place - i for i, (place, *_) in enumerate(assignments)]
            )
            made, answers = module.generate_input_output(
                sum("VAR" not in line for line in spread(lines)), 1, 4, is_icl=is_icl
            )
        assert answers == names
        return made, names

    def spread(lines: list[str]) -> list[str]:
        """Lines with one thing in each: assignments stand in front of lines."""
        return [part for line in lines for part in re.findall(r" ?VAR \w+ = (?:VAR )?\w+ | ?The grass.*", line)]

    for case in cases("vt"):
        message, answer = parts(case)
        example, mine = (message + answer).split("\n\n\n\n")
        example, example_names = theirs(example, True)[0], theirs(example, True)[1]
        assert all(len(name) == 3 and name != "VAR" for name in example_names)
        made, names = theirs(mine, False)
        assert all(len(name) == 5 for name in names)
        assert tuple(names) == query(case).references
        assert len({*names, *example_names}) == 10
        icl = example + " " + " ".join(example_names) + "\n\n"
        assert message + answer == icl + "\n\n" + made


def test_the_example_of_vt_is_as_long_as_published(smollm2: Path, port: dict[str, Any]) -> None:
    with EvalModel(smollm2, Setting("plain"), Rope.of(smollm2), 64) as model:
        plain = model.tokenizer().plain
        made = port["vt_utils"].sys_vartrack_w_noise_random(
            lambda text: types.SimpleNamespace(input_ids=plain(text)), num_samples=1, max_seq_length=500, incremental=5
        )
        (case, *_) = cases("vt", model.tokenizer(), lengths=(2048,))
        mine = model.tokenizer().detokenize(query(case).prompt).split("\n\n\n\n")[0]
    assert made[0]["input"].count("There and back again.") == mine.count("There and back again.") == 10


def test_common_words_are_those_of_the_port(port: dict[str, Any], monkeypatch: pytest.MonkeyPatch) -> None:
    module = port["cwe_utils"]
    assert sorted(module.WORDS) == list(words("noun", "adjective", "verb"))
    for n_tokens in (4000, 4095, 8192, 9999):
        for case in cases("cwe", lengths=(n_tokens,), samples=2):
            message, answer = parts(case)
            example, mine = numbered_list(message)
            example_often = re.findall(r"\d+\. (.*?)(?= \d+\.|\n)", message.split("list are:")[1])[:10]
            asked: list[tuple[int, int, int, int]] = []

            def get_example(
                num_words: int, often: int, seldom: int, n_common: int, case: Case = case, example: list[str] = example,
                mine: list[str] = mine, example_often: list[str] = example_often, asked: list[Any] = asked,
            ) -> tuple[str, list[str]]:  # fmt: skip
                listed, common = ((example, example_often), (mine, list(query(case).references)))[len(asked)]
                asked.append((num_words, often, seldom, n_common))
                counts = Counter(listed)
                assert len(counts) == num_words
                assert [counts.pop(word) for word in common] == [often] * n_common
                assert set(counts.values()) == {seldom}
                return " ".join(f"{i}. {word}" for i, word in enumerate(listed, 1)), common

            with monkeypatch.context() as patch:
                patch.setattr(module, "get_example", get_example)
                made_example, made, common = module.generate_input_output(len(set(mine)), n_tokens)
            assert message + answer == f"{made_example}\n{made}"
            assert tuple(common) == query(case).references
            assert asked == (
                [(20, 3, 1, 10), (len(set(mine)), 6, 1, 10)]
                if n_tokens < 4096
                else [(40, 10, 3, 10), (len(set(mine)), 30, 3, 10)]
            )
            assert not set(example) & set(mine)
            assert {*example, *mine} <= set(module.WORDS)


def test_frequent_words_are_those_of_the_port(port: dict[str, Any]) -> None:
    module = port["fwe_utils"]
    for case in cases("fwe"):
        message, answer = parts(case)
        mine = coded_counts(message)
        n_tokens = int(str(case.axes["n_tokens"]))
        dots = message.split("words. ")[1].split("\nQuestion")[0].split().count("...")
        n = int((dots + 1) * aggregation.ZETA_2) - 1  # a number of words that gives as many dots
        while aggregation.counts(n + 1, 1) == [dots]:
            n += 1
        found = []
        for num_words in range(n, n - 3, -1):
            made, theirs, _ = module.generate_input_output(
                10**9, Characters(), num_words=num_words, vocab_size=n_tokens // 50
            )
            found.append(sorted(coded_counts(made).values()))
        assert sorted(mine.values()) in found
        assert len(theirs) == len(query(case).references) == 3
        assert all(re.fullmatch("[a-z]{6}", word) for word in mine)
        context = made.split("words. ")[1].split("\nQuestion")[0]
        my_context = message.split("words. ")[1].split("\nQuestion")[0]
        assert made.replace(context, "{}") == (message + answer).replace(my_context, "{}")


def test_frequencies_follow_the_published_formula_and_never_tie() -> None:
    special = importlib.import_module("scipy.special")
    for n in range(aggregation.LEAST_N, 5000):
        found = aggregation.counts(n, 40)
        assert found[3] > found[4]
        assert found == [int(n * k**-2.0 / special.zeta(2.0)) for k in range(1, 41)]
    assert (lambda found: found[3] == found[4])(aggregation.counts(aggregation.LEAST_N - 1, 40))


def test_answers_have_as_much_room_as_published(port: dict[str, Any]) -> None:
    folder = Path(port["vt_utils"].__file__).parent
    files = {"niah_multikey_2": "niah_single_1", "niah_multikey_3": "niah_single_1"}  # they include it
    for subtask in SUBTASKS:
        (room,) = re.findall(r"max_gen_toks: (\d+)", (folder / f"{files.get(subtask, subtask)}.yaml").read_text())
        assert {query(case).n_predict for case in cases(subtask, samples=1)} == {int(room)}


@pytest.mark.parametrize("subtask", SUBTASKS)
def test_scores_are_those_of_the_port(subtask: str, port: dict[str, Any]) -> None:
    common = port["common_utils"]
    for case in cases(subtask, samples=2):
        references = query(case).references
        for n in range(len(references) + 1):
            answer = " \x07" + ", ".join(references[:n]).upper() + "\nand more\t"
            mine = METRICS[query(case).metric](answer, references, ())
            assert mine == common.string_match_all(common.postprocess_pred([answer]), [list(references)])
            assert mine >= n / len(references)  # a word may be part of another


# -- places, sharing, lengths


def test_single_needles_stand_everywhere() -> None:
    depths = []
    for case in cases("niah_single_1", samples=60):
        lines = parts(case)[0].split("\n")[1:-1]
        depths.append(next(i for i, line in enumerate(lines) if "magic" in line) / len(lines))
    assert min(depths) < 0.05
    assert max(depths) > 0.9
    assert 0.4 < sum(depths) / len(depths) < 0.6


@pytest.mark.parametrize("subtask", ["niah_multikey_2", "niah_multikey_3"])
def test_samples_ask_about_one_haystack(subtask: str) -> None:
    found = cases(subtask, samples=6)
    for n_tokens in LENGTHS:
        prompts = [query(case).prompt for case in found if case.axes["n_tokens"] == n_tokens]
        messages = [parts(case)[0].rpartition("\n")[0] for case in found if case.axes["n_tokens"] == n_tokens]
        assert len(set(messages)) == 1
        assert all(shared_prefix(prompts[0], prompt) >= len(CHAT[0] + messages[0]) for prompt in prompts)
        assert len({query(case).references for case in found if case.axes["n_tokens"] == n_tokens}) == 6
    readings = plan_readings([query(case).prompt for case in found])
    evaluated = sum(len(query(c).prompt) - r.n_shared for c, r in zip(found, readings, strict=True))
    # Each haystack once, and of every prompt the last slices, in which line breaks and question stand.
    assert evaluated <= sum(LENGTHS) + len(found) * 2 * 512


def test_single_needles_share_what_stands_before_them() -> None:
    found = cases("niah_single_1", samples=8)
    readings = plan_readings([query(case).prompt for case in found])
    assert sum(reading.n_shared for reading in readings) > 0.3 * sum(len(query(case).prompt) for case in found)


@pytest.mark.parametrize("subtask", SUBTASKS)
def test_answers_do_not_depend_on_the_tokenizer(subtask: str, tokenizer: Tokenizer) -> None:
    if subtask.startswith("niah_multikey"):  # they ask about a line of what fits; the lines are the same
        a, b = (
            re.findall(r"for (\S+) is: (\S+)\.", spelled.detokenize(query(cases(subtask, spelled)[0]).prompt))
            for spelled in (characters(), tokenizer)
        )
        assert len(a) > 50
        assert a[: len(b)] == b[: len(a)]
        return
    mine = {case.key: query(case).references for case in cases(subtask)}
    assert mine == {case.key: query(case).references for case in cases(subtask, tokenizer)}


@pytest.mark.parametrize("subtask", SUBTASKS)
def test_more_samples_leave_the_others_alone(subtask: str) -> None:
    few = {case.key: case.digest for case in cases(subtask, samples=1, lengths=LENGTHS[:1])}
    many = {case.key: case.digest for case in cases(subtask, samples=3)}
    assert len(few) == 1
    assert few.items() <= many.items()


@pytest.mark.parametrize("subtask", SUBTASKS)
def test_a_length_that_is_too_short(subtask: str) -> None:
    with pytest.raises(
        EvalError, match=rf"^150 tokens are too few for RULER's {subtask}; at least \d+ are needed$"
    ) as e:
        cases(subtask, lengths=(150,), samples=1)
    least = int(str(e.value).split()[-3])
    (case,) = cases(subtask, lengths=(least,), samples=1)
    assert len(query(case).prompt) == least
    with pytest.raises(EvalError, match=f"at least {least} are needed"):
        cases(subtask, lengths=(least - 1,), samples=1)


def test_a_length_that_is_too_long_for_the_words() -> None:
    with pytest.raises(
        EvalError, match=r"^999999 tokens are too many for RULER's cwe: all its \d+ words take \d+ "
    ) as e:
        cases("cwe", lengths=(999_999,), samples=1)
    n_words, most = (int(number) for number in re.findall(r"\d+", str(e.value))[1:3])
    (case,) = cases("cwe", lengths=(most,), samples=1)
    example, mine = numbered_list(text(case))
    assert len(set(mine)) == n_words
    assert len({*example, *mine}) == len(words("noun", "adjective", "verb"))


def test_a_subtask_that_is_none() -> None:
    with pytest.raises(EvalError, match=r"^the subtask is 'qa_1'; it must be one of niah_single_1, .*, cwe, fwe$"):
        Ruler(subtasks=("vt", "qa_1"))


def test_words_that_are_not_installed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "wonderwords", None)
    words.cache_clear()
    with pytest.raises(MissingExtraError, match=r"pip install 'pyselfextend\[eval\]'$"):
        cases("cwe")
    assert cases("fwe")  # needs none


def test_only_the_seed_decides() -> None:
    code = (
        "from eval_helpers import characters\nfrom pyselfextend.eval.tasks.ruler import Ruler\n"
        "print([(c.key, c.digest) for c in Ruler((9000,), samples=2, seed=3).cases(characters())])"
    )
    first = under_hash_seed(code, 1)
    assert first == under_hash_seed(code, 2)
    digests = [(case.key, case.digest) for case in Ruler((9000,), samples=2, seed=3).cases(characters())]
    assert len(digests) == 2 * len(SUBTASKS)
    assert first == f"{digests}\n"
    other = {case.digest for case in Ruler((9000,), samples=2, seed=4).cases(characters())}
    assert not other & {digest for _, digest in digests}


def test_a_model_answers(tiny_model: Path) -> None:
    task = Ruler((900,), ("niah_multikey_2", "fwe"), 1)
    results = list(evaluate([tiny_model], [task], [Setting("plain")]))
    assert [(result.axes["subtask"], result.error, result.n_prompt) for result in results] == [
        ("niah_multikey_2", "", 900), ("fwe", "", 900),
    ]  # fmt: skip
    for result in results:
        assert result.score == sum(part in result.answer for part in result.references) / len(result.references)

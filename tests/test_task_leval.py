"""L-Eval on small files of the published format: prompts, their lengths, scores, and what is said of other files."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from eval_helpers import CHAT, characters

from pyselfextend import EvalError
from pyselfextend.eval.cases import Case, Generate, Tokens
from pyselfextend.eval.metrics import METRICS
from pyselfextend.eval.model import EvalModel
from pyselfextend.eval.run import Options, evaluate
from pyselfextend.eval.settings import Rope, Setting
from pyselfextend.eval.sharing import plan_readings, shared_prefix
from pyselfextend.eval.tasks.leval import LEval
from pyselfextend.eval.tasks.leval.prompts import CLOSED_ENDED, OPEN_ENDED

ROUGE = {name for name in OPEN_ENDED if name.endswith("_summ")} | {"paper_assistant"}

#: Outputs, answers that score 1 and 0, and the metric.
ANSWERS = {
    "coursera": ("BD", "B. this, D. that", "A", "leval_choices"),
    "quality": ("B", "B", "C", "leval_choice"),
    "tpo": ("(C)", "C", "D", "leval_choice"),
    "gsm100": ("18", "2 * 9 = 18\nThe answer is 18\n\nQuestion: 3", "The answer is 17", "leval_math"),
    "codeU": ("[1 2]", "So the final output is [1, 2]", "[2 1]", "leval_code"),
    "topic_retrieval_longchat": ("The role of art", "the role of art.", "Space", "leval_exact_match"),
    "sci_fi": ("True [fact: False]", "True", "False", "leval_true_false"),
}


def answers(name: str) -> tuple[str, str, str, str]:
    metric = "leval_rouge_l" if name in ROUGE else "leval_f1"
    return ANSWERS.get(name, ("an oak tree of the park", "an oak tree of the park", "nothing", metric))


def record(name: str, n: int = 0, **changes: Any) -> dict[str, Any]:
    """A document of some 300 characters, each of which tells where it stands, and instructions of several lengths."""
    asked = "True or False? Answer this question based on the world described in the document."
    return {
        "instructions": [f"{i + 1}. What {'is asked ' * i}? {asked if name == 'sci_fi' else ''}" for i in range(3)],
        "outputs": [answers(name)[0]] * 3,
        "input": " ".join(f"{n}.{i} {{brace}}" for i in range(20)),
        "source": name,
        "evaluation": "exam" if name in CLOSED_ENDED else "rouge" if name in ROUGE else "f1",
    } | changes


def write(path: Path, *records: Any) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("".join(json.dumps(r) + "\n" for r in records), encoding="utf-8")
    return path


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """All datasets as published, with two records each."""
    for place, names in (("Closed-ended-tasks", CLOSED_ENDED), ("Open-ended-tasks", OPEN_ENDED)):
        for name in names:
            write(tmp_path / place / f"{name}.jsonl", record(name, 0), record(name, 1))
    return tmp_path


def query(case: Case) -> Generate:
    assert isinstance(case.query, Generate)
    return case.query


def text(case: Case) -> str:
    return characters().detokenize(query(case).prompt)


def holds(tokens: Tokens, part: Tokens) -> bool:
    return any(tokens[i : i + len(part)] == part for i in range(len(tokens)))


def first(folder: Path, name: str) -> str:
    return text(next(LEval(folder, (name,), lengths=(5000,)).cases(characters())))


# -- prompts

DOCUMENT = record("")["input"]


def exam(head: str, instruction: str) -> str:
    """A prompt of an exam."""
    return (
        f"{CHAT[0]}{head}Document is as follows. {DOCUMENT} \nQuestion: {instruction}.  Please directly give the "
        f"answer without any additional output or explanation {CHAT[1]}\nAnswer:"
    )


def test_prompts_of_exams_in_full(folder: Path) -> None:
    start = "Now you are given a very long document. Please follow the instruction based on this document. For "
    for name in ("quality", "tpo"):
        head = (
            "multi-choice questions, there is only a sinlge correct option. Please only provide the letter "
            "corresponding to the answer (like A or B) when answering. For other questions, please directly give the "
            "concise and accurate answer. "
        )
        assert first(folder, name) == exam(start + head, "1. What ? ")
    head = (
        "multi-choice questions, there could be a sinlge correct option or multiple correct options. Please only "
        "provide the letter corresponding to the answer (like A or AB) when answering. "
    )
    assert first(folder, "coursera") == exam(start + head, "1. What ? ")


def test_prompts_that_are_gone_on_with_have_no_chat_template(folder: Path) -> None:
    assert first(folder, "gsm100") == (
        "\1Given several question answer pairs, you need to follow a similar format to answer the last question. Make "
        f"sure the response is end with The answer is _ . {DOCUMENT}\n\n1. What ? "
    )
    assert first(folder, "codeU") == (
        "\1Now you are given a code base consisting of a large amount of functions and the corresponding comments. In "
        "the end, I will call some functions defined in the code base. Please carefully read these codes and comments "
        f"and answer the question.{DOCUMENT}\n\n1. What ? "
    )


def test_the_prompt_of_topics_in_full(folder: Path) -> None:
    assert first(folder, "topic_retrieval_longchat") == (
        f"{CHAT[0]}Below is a record of our previous conversation on many different topics. You are the ASSISTANT, and "
        "I am the USER. At the beginning of each topic, the USER will say 'I would like to discuss the topic of "
        "<TOPIC>'. Memorize each <TOPIC>. At the end of the record, I will ask you to retrieve the first/second/third "
        f"topic names. Now the record start. {DOCUMENT}\n\n1. What ? {CHAT[1]}"
    )


def test_open_ended_prompts_say_how_long_the_answer_is(folder: Path) -> None:
    for name in OPEN_ENDED:
        assert first(folder, name) == (
            f"{CHAT[0]}Now you are given a very long document. Please follow the instruction after this document. "
            "These instructions may include summarizing a document, answering questions based on the document, or "
            f"writing a required paragraph. Document is as follows. {DOCUMENT} Instruction: 1. What ?  \n"
            f"Answer this question with 6 words.{CHAT[1]}"
        )


def test_science_fiction_is_asked_about_the_document_and_about_the_world(folder: Path) -> None:
    cases = list(LEval(folder, ("sci_fi",), lengths=(5000,), limit=1).cases(characters()))
    assert [(c.axes["part"], c.axes["question"]) for c in cases] == [
        (part, question) for part in ("loyalty", "fact") for question in range(3)
    ]
    assert [query(c).references for c in cases] == [("true",)] * 3 + [("false",)] * 3
    assert text(cases[0]) == exam(
        'Now you are given a scientific fiction. I will ask you some questions and the answer should be "True" or '
        '"False". Notice that you should answer the question based on the evidence in the document instead of your '
        "background knowledge.",
        "1. What ? True or False? Answer this question based on the world described in the document.",
    )
    assert text(cases[3]) == (
        f"{CHAT[0]}1. What ? True or False? Answer this question based on the real-world knowledge and facts up until "
        "your last trainingPlease directly answer without any additional output or explanation. "
        f"{CHAT[1]}\nAnswer:"
    )
    # The first release says nothing of the world.
    write(folder / "Closed-ended-tasks" / "sci_fi.jsonl", record("sci_fi", outputs=["True", "False", "True"]))
    cases = list(LEval(folder, ("sci_fi",), lengths=(5000,)).cases(characters()))
    assert [query(c).references for c in cases] == [("true",), ("false",), ("true",)]


@pytest.mark.parametrize("truncation", ["middle", "published"])
@pytest.mark.parametrize("name", [*CLOSED_ENDED, *OPEN_ENDED])
@pytest.mark.parametrize("room", [0, 1, 90, 91])
def test_a_document_that_is_too_long_is_cut_and_nothing_else_is(
    folder: Path, name: str, truncation: str, room: int
) -> None:
    def ask(n_tokens: int) -> list[Case]:
        task = LEval(folder, (name,), lengths=(n_tokens,), truncation=truncation, limit=1)
        return [c for c in task.cases(characters()) if c.axes.get("part") != "fact"]

    whole = ask(9999)
    n_tokens = room + max(len(text(case)) - len(DOCUMENT) for case in whole)
    cut = ask(n_tokens)
    assert max(len(text(case)) for case in cut) == n_tokens
    kept = {
        "middle": DOCUMENT[: room // 2] + DOCUMENT[len(DOCUMENT) - (room - room // 2) :],
        "published": DOCUMENT[len(DOCUMENT) - room :] if name == "codeU" else DOCUMENT[:room],
    }
    assert [text(case) for case in cut] == [text(case).replace(DOCUMENT, kept[truncation]) for case in whole]
    assert {case.axes["truncated"] for case in cut} == {"yes"}
    assert {case.axes["truncated"] for case in whole} == {"no"}


@pytest.mark.parametrize("name", ["llama", "qwen2", "gemma3"])
@pytest.mark.parametrize("chat", [True, False])
def test_lengths_are_exact_in_the_tokens_of_a_model(
    tmp_path: Path, tiny_models: dict[str, Path], name: str, chat: bool
) -> None:
    for dataset in (*CLOSED_ENDED, *OPEN_ENDED):
        write(tmp_path / f"{dataset}.jsonl", record(dataset, input=DOCUMENT * 20))
    path = tiny_models[name]
    with EvalModel(path, Setting("plain"), Rope.of(path), 64) as model:
        tokenizer = model.tokenizer(chat)
        cases = list(LEval(tmp_path, lengths=(700, 801)).cases(tokenizer))
        document = tokenizer.plain(DOCUMENT * 20)
    for dataset in (*CLOSED_ENDED, *OPEN_ENDED):
        for n_tokens in (700, 801):
            prompts = [
                query(case).prompt
                for case in cases
                if case.axes["subtask"] == dataset
                and case.axes["n_tokens"] == n_tokens
                and case.axes.get("part") != "fact"
            ]
            assert max(map(len, prompts)) == n_tokens
            # Document and all, up to the number that an instruction begins with, they are the same.
            shared = prompts[0][: min(shared_prefix(prompts[0], prompt) for prompt in prompts[1:])]
            assert holds(shared, document[:50]) and holds(shared, document[-50:])


# -- cases


def test_every_instruction_at_every_length(folder: Path) -> None:
    task = LEval(folder, lengths=(2000, 1000), limit=1)
    cases = list(task.cases(characters()))
    assert len({case.key for case in cases}) == len(cases) == (20 * 3 + 3) * 2
    assert [case.key for case in cases[:4]] == [
        "subtask=coursera n_tokens=1000 sample=0 question=0",
        "subtask=coursera n_tokens=1000 sample=0 question=1",
        "subtask=coursera n_tokens=1000 sample=0 question=2",
        "subtask=coursera n_tokens=2000 sample=0 question=0",
    ]
    assert task.n_ctx == 2512
    assert LEval(folder, n_predict=32).n_ctx == 16384 + 32
    assert all(case.query.n_ctx <= task.n_ctx for case in cases)


@pytest.mark.parametrize("place", ["", "Exam", "Generation", "Closed-ended-tasks"])
def test_files_in_other_places(tmp_path: Path, place: str) -> None:
    write(tmp_path / place / "tpo.jsonl", record("tpo"))
    assert len(list(LEval(tmp_path).cases(characters()))) == 3


def test_a_document_is_read_once(tmp_path: Path) -> None:
    write(tmp_path / "tpo.jsonl", record("tpo", input="long " * 4000))
    prompts = [query(case).prompt for case in LEval(tmp_path, lengths=(8192,)).cases(characters())]
    readings = plan_readings(prompts)
    assert readings[0].n_shared == 0
    assert all(reading.n_shared > 0.9 * 8192 for reading in readings[1:])


@pytest.mark.parametrize("evaluation", ["LLM", "human"])
def test_what_needs_a_judge_is_left_out(tmp_path: Path, evaluation: str) -> None:
    judged = record("news_summ", evaluation=evaluation)
    path = write(tmp_path / "news_summ.jsonl", judged, record("news_summ", 1), judged, record("news_summ", 2))
    assert [c.axes["sample"] for c in LEval(tmp_path).cases(characters())] == [0, 0, 0, 1, 1, 1]
    assert all("1.0 {brace}" in text(c) for c in LEval(tmp_path, limit=1).cases(characters()))
    write(path, judged)
    with pytest.raises(EvalError, match=r"all records of news_summ need a judge; there is nothing to score$"):
        list(LEval(tmp_path).cases(characters()))


# -- scores


@pytest.mark.parametrize("name", [*CLOSED_ENDED, *OPEN_ENDED])
def test_right_and_wrong_answers(folder: Path, name: str) -> None:
    asked = query(next(LEval(folder, (name,)).cases(characters())))
    _, right, wrong, metric = answers(name)
    assert asked.metric == metric
    assert METRICS[metric](right, asked.references, ()) == pytest.approx(1.0)
    assert METRICS[metric](wrong, asked.references, ()) == 0.0
    assert METRICS[metric]("", asked.references, ()) == 0.0


@pytest.mark.parametrize("rouge", ["1", "2", "l"])
def test_kinds_of_rouge(folder: Path, rouge: str) -> None:
    asked = query(next(LEval(folder, ("news_summ",), rouge=rouge).cases(characters())))
    assert asked.metric == f"leval_rouge_{rouge}"
    half = {"1": 2 / 3, "2": 4 / 7, "l": 2 / 3}  # three of six words, two of five pairs
    assert METRICS[asked.metric]("an oak tree", asked.references, ()) == pytest.approx(half[rouge])


@pytest.mark.parametrize("setting", ["plain", "2:64"])
def test_a_model_is_asked(folder: Path, tiny_model: Path, setting: str) -> None:
    task = LEval(folder, ("coursera", "sci_fi", "codeU", "news_summ"), lengths=(700, 800), limit=1, n_predict=8)
    results = list(evaluate([tiny_model], [task], [Setting.parse(setting)], options=Options(n_threads=1)))
    assert len(results) == (4 * 3 + 3) * 2
    for result in results:
        assert result.error == ""
        assert result.score == METRICS[result.metric](result.answer, result.references, ())
        assert result.n_prompt <= int(result.axes["n_tokens"])
    assert {result.axes["truncated"] for result in results} == {"yes", "no"}


# -- files and options that are not as they should be


def test_options_that_are_unknown(tmp_path: Path) -> None:
    with pytest.raises(EvalError, match=r"^truncation is 'left'; it must be one of middle, published$"):
        LEval(tmp_path, truncation="left")
    with pytest.raises(EvalError, match=r"^rouge is '3'; it must be one of 1, 2, l$"):
        LEval(tmp_path, rouge="3")


def test_folders_and_datasets_that_are_missing(folder: Path) -> None:
    with pytest.raises(EvalError, match=r"nowhere is not a folder; it must hold the published files of L-Eval$"):
        LEval(folder / "nowhere")
    (folder / "empty").mkdir()
    with pytest.raises(EvalError) as error:
        LEval(folder / "empty")
    places = "nor does Closed-ended-tasks, Open-ended-tasks, Exam or Generation in it"
    assert str(error.value) == f"{folder / 'empty'} holds none of L-Eval's files, such as coursera.jsonl, {places}"
    (folder / "Closed-ended-tasks" / "tpo.jsonl").unlink()
    with pytest.raises(EvalError) as error:
        LEval(folder, ("tpo",))
    assert str(error.value) == f"{folder} holds no file tpo.jsonl, {places}"
    with pytest.raises(EvalError, match=r"^L-Eval has no dataset 'code_u'; it has coursera, quality, "):
        LEval(folder, ("code_u",))


@pytest.mark.parametrize(
    ("line", "wanted"),
    [
        ("{", "this is no JSON object; each line must be one"),
        ({"input": 1}, "'input' must be a text"),
        ({"input": "half of a character: \ud83d"}, "'input' must be a text"),
        ({"instructions": "What?"}, "'instructions' must be a list of texts"),
        ({"outputs": []}, "'outputs' must be a list of texts"),
        ({"outputs": ["B"]}, "there are 3 'instructions' and 1 'outputs'; there must be as many"),
        ({"evaluation": None}, "'evaluation' must be a text"),
        ({"evaluation": "bleu"}, "'evaluation' is 'bleu'; it must be one of exam, f1, rouge, llm, human"),
    ],
)
def test_a_line_that_is_damaged(tmp_path: Path, line: str | dict[str, Any], wanted: str) -> None:
    path = write(tmp_path / "tpo.jsonl", record("tpo"))
    damaged = line if isinstance(line, str) else json.dumps(record("tpo", **line))
    path.write_text(path.read_text() + damaged + "\n")
    with pytest.raises(EvalError) as error:
        list(LEval(tmp_path).cases(characters()))
    assert str(error.value) == f"{path}, line 2: {wanted}"


def test_a_length_that_is_too_small(folder: Path) -> None:
    with pytest.raises(
        EvalError, match=r"^50 tokens are too few for a prompt of L-Eval's tpo; at least ([0-9]+) are"
    ) as e:
        list(LEval(folder, ("tpo",), lengths=(50,)).cases(characters()))
    least = int(str(e.value).split()[-3])
    cases = list(LEval(folder, ("tpo",), lengths=(least,)).cases(characters()))
    assert max(len(query(case).prompt) for case in cases) == least

"""LongBench on small files of the published format: prompts, their lengths, scores, and what is said of other files."""

from __future__ import annotations

import importlib.util
import json
import re
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from eval_helpers import CHAT, characters

from pyselfextend import EvalError, MissingExtraError
from pyselfextend.eval.cases import Case, Generate
from pyselfextend.eval.metrics import METRICS, require
from pyselfextend.eval.model import EvalModel
from pyselfextend.eval.run import Options, evaluate
from pyselfextend.eval.settings import Rope, Setting
from pyselfextend.eval.sharing import plan_readings
from pyselfextend.eval.tasks.longbench import LongBench
from pyselfextend.eval.tasks.longbench.datasets import DATASETS, DATASETS_E

#: pred.py's datasets without a chat template, and eval.py's whose first line counts.
NO_CHAT = {"trec", "triviaqa", "samsum", "lsht", "lcc", "repobench-p"}
FIRST_LINE = {"trec", "triviaqa", "samsum", "lsht"}

#: Where every metric gives 1, and 0.
ANSWERS = {
    "passage_retrieval_en": ("Paragraph 3", "Paragraph 4"),
    "passage_retrieval_zh": ("段落3", "段落4"),
    "passage_count": ("7", "8"),
    "trec": ("Date", "Place"),
    "lsht": ("体育", "财经"),
    "multifieldqa_zh": ("北京大学", "下雨天"),
    "dureader": ("北京大学", "下雨天"),
    "vcsum": ("北京大学", "下雨天"),
    "lcc": ("return a", "x=1"),
    "repobench-p": ("return a", "x=1"),
}
CLASSES = {"trec": ["Date", "Place"], "lsht": ["体育", "财经"]}


def record(dataset: str, n: int = 0, **changes: Any) -> dict[str, Any]:
    """A record with a context of some 200 characters, each of which tells where it stands."""
    base = dataset.removesuffix("_e")
    return {
        "input": f"What is asked {n}?",
        "context": " ".join(f"{n}.{i} {{brace}}" for i in range(14)),
        "answers": [ANSWERS.get(base, ("an oak tree", "nothing"))[0]],
        "length": 30,
        "dataset": dataset,
        "language": "zh" if base in ("multifieldqa_zh", "dureader", "vcsum", "lsht", "passage_retrieval_zh") else "en",
        "all_classes": CLASSES.get(base),
        "_id": f"{n:048x}",
    } | changes


def message(name: str) -> str:
    """The prompt of a dataset's first record, without a chat template."""
    return DATASETS[name].prompt.format(**record(name))


def write(path: Path, *records: Any) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("".join(json.dumps(r, ensure_ascii=False) + "\n" for r in records), encoding="utf-8")
    return path


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """All datasets, with two records each."""
    for name in DATASETS:
        write(tmp_path / f"{name}.jsonl", record(name, 0), record(name, 1))
    return tmp_path


def query(case: Case) -> Generate:
    assert isinstance(case.query, Generate)
    return case.query


def text(case: Case) -> str:
    return characters().detokenize(query(case).prompt)


def published() -> dict[str, tuple[str, int, str]]:
    """Prompts, longest answers and metrics of the port in lm-evaluation-harness."""
    spec = importlib.util.find_spec("lm_eval")
    assert spec is not None and spec.submodule_search_locations
    found = {}
    for name in DATASETS:
        lines = Path(spec.submodule_search_locations[0], "tasks", "longbench", f"{name}.yaml").read_text("utf-8")
        prompt, n_predict, metric = (
            re.search(pattern, lines, re.MULTILINE)
            for pattern in (
                "^doc_to_text: (.*)$",
                "^ +max_gen_toks: ([0-9]+)$",
                r"function metrics\.get_(\w+)_with_score$",
            )
        )
        assert prompt and n_predict and metric
        found[name] = (json.loads(prompt[1]), int(n_predict[1]), metric[1])
    return found


# -- prompts


def test_the_published_prompts_lengths_and_metrics() -> None:
    wanted = published()
    metrics = {"rouge": "rouge_l", "rouge_zh": "rouge_l_zh"}
    assert len(wanted) == 21
    for name, (prompt, n_predict, metric) in wanted.items():
        ours = DATASETS[name].prompt.replace("{context}", "{{context}}").replace("{input}", "{{question}}")
        # The port leaves out spaces and line breaks at ends.
        assert ours.split() == prompt.split(), name
        assert DATASETS[name].n_predict == n_predict
        first_line = "_first_line" if name in FIRST_LINE else ""
        assert DATASETS[name].metric == f"longbench_{metrics.get(metric, metric)}{first_line}"
        assert DATASETS[name].chat == (name not in NO_CHAT)
    assert DATASETS["passage_count"].prompt.endswith("The final answer is: ")
    assert DATASETS["lcc"].prompt.endswith("Next line of code:\n")


def test_a_prompt_in_full(folder: Path) -> None:
    chat, plain = (
        text(next(LongBench(folder, (name,), lengths=(4000,)).cases(characters())))
        for name in ("multifieldqa_en", "trec")
    )
    context = record("trec")["context"]
    assert chat == (
        f"{CHAT[0]}Read the following text and answer briefly.\n\n{context}\n\nNow, answer the following question "
        "based on the above text, only give me the answer and do not output any other words.\n\n"
        f"Question: What is asked 0?\nAnswer:{CHAT[1]}"
    )
    assert plain == (
        "\1Please determine the type of the question below. Here are some examples of questions.\n\n"
        f"{context}\nWhat is asked 0?"
    )


@pytest.mark.parametrize("n_tokens", [150, 151, 300])
def test_what_is_too_long_keeps_its_first_and_last_half(folder: Path, n_tokens: int) -> None:
    whole = {
        c.key.replace("n_tokens=9999 ", ""): text(c) for c in LongBench(folder, lengths=(9999,)).cases(characters())
    }
    for case in LongBench(folder, lengths=(n_tokens,)).cases(characters()):
        before, after = ("\1", "") if case.axes["subtask"] in NO_CHAT else CHAT
        prompt = whole[case.key.replace(f"n_tokens={n_tokens} ", "")]
        message = prompt[len(before) : len(prompt) - len(after)]
        room = n_tokens - len(before) - len(after)
        if len(message) <= room:
            assert text(case) == prompt
            assert case.axes["truncated"] == "no"
            continue
        assert len(query(case).prompt) == n_tokens
        half = room // 2
        assert text(case) == before + message[:half] + message[-(room - half) :] + after
        assert case.axes["truncated"] == "yes"


@pytest.mark.parametrize("name", ["llama", "qwen2", "gemma3"])
@pytest.mark.parametrize("chat", [True, False])
def test_lengths_are_exact_in_the_tokens_of_a_model(
    folder: Path, tiny_models: dict[str, Path], name: str, chat: bool
) -> None:
    path = tiny_models[name]
    task = LongBench(folder, lengths=(128, 129, 200, 5000), limit=1)
    with EvalModel(path, Setting("plain"), Rope.of(path), 64) as model:
        tokenizer = model.tokenizer(chat)
        cases = list(task.cases(tokenizer))
        messages = {name: tokenizer.plain(message(name)) for name in DATASETS}
    for case in cases:
        before, after = tokenizer.before, tokenizer.after
        if case.axes["subtask"] in NO_CHAT:
            before, after = tokenizer.bos, ()
        prompt, whole = query(case).prompt, messages[str(case.axes["subtask"])]
        assert prompt[: len(before)] == before
        assert prompt[len(prompt) - len(after) :] == after
        kept = prompt[len(before) : len(prompt) - len(after)]
        if case.axes["truncated"] == "no":
            assert kept == whole
            continue
        assert len(prompt) == case.axes["n_tokens"]
        half = len(kept) // 2
        assert kept == whole[:half] + whole[-(len(kept) - half) :]
        if len(kept) % 2 == 0:  # pred.py
            assert kept == whole[: int(len(kept) / 2)] + whole[-int(len(kept) / 2) :]
    assert {case.axes["truncated"] for case in cases} == {"yes", "no"}


# -- cases


def test_every_record_at_every_length(folder: Path) -> None:
    task = LongBench(folder, lengths=(400, 200))
    cases = list(task.cases(characters()))
    assert len({case.key for case in cases}) == len(cases) == 21 * 2 * 2
    assert [case.key for case in cases[:3]] == [
        "subtask=narrativeqa n_tokens=200 sample=0",
        "subtask=narrativeqa n_tokens=400 sample=0",
        "subtask=narrativeqa n_tokens=200 sample=1",
    ]
    assert {case.axes["language"] for case in cases} == {"en", "zh", "code"}
    assert task.n_ctx == 400 + 512
    assert all(case.query.n_ctx <= task.n_ctx for case in cases)


def test_some_datasets_and_records(folder: Path) -> None:
    task = LongBench(folder, ("lcc", "qasper"), lengths=(300,), limit=1)
    assert [case.key for case in task.cases(characters())] == [
        "subtask=qasper n_tokens=300 sample=0",
        "subtask=lcc n_tokens=300 sample=0",
    ]
    assert task.n_ctx == 300 + 128


def test_longer_prompts_of_a_record_go_on_from_the_shorter_one(tmp_path: Path) -> None:
    write(tmp_path / "qasper.jsonl", record("qasper", context="long " * 4000))
    prompts = [query(case).prompt for case in LongBench(tmp_path, lengths=(4096, 8192)).cases(characters())]
    assert [reading.n_shared for reading in plan_readings(prompts)] == [0, 1536]  # whole slices of 2047 tokens


def test_longbench_e(tmp_path: Path) -> None:
    for name in DATASETS_E:
        lengths = (3999, 4000, 7999, 8000)
        write(tmp_path / "data" / f"{name}_e.jsonl", *(record(name, i, length=n) for i, n in enumerate(lengths)))
    cases = list(LongBench(tmp_path, e=True).cases(characters()))
    assert len(cases) == 13 * 4
    assert [case.axes["interval"] for case in cases[:4]] == ["0-4k", "4-8k", "4-8k", "8k+"]
    assert {case.axes["subtask"] for case in cases} == {f"{name}_e" for name in DATASETS_E}
    for names in (("lcc",), ("lcc_e",)):
        assert {c.axes["subtask"] for c in LongBench(tmp_path, names, e=True).cases(characters())} == {"lcc_e"}
    with pytest.raises(
        EvalError, match=r"holds none of LongBench's files, such as narrativeqa\.jsonl, nor does data in"
    ):
        list(LongBench(tmp_path).cases(characters()))
    with pytest.raises(EvalError, match=r"^LongBench-E has no dataset 'vcsum_e'; it has qasper_e, "):
        LongBench(tmp_path, ("vcsum",), e=True)


# -- scores


@pytest.mark.parametrize("name", DATASETS)
def test_right_and_wrong_answers(folder: Path, name: str) -> None:
    asked = query(next(LongBench(folder, (name,)).cases(characters())))
    right, wrong = ANSWERS.get(name, ("an oak tree", "nothing"))

    def score(answer: str) -> float:
        return METRICS[asked.metric](answer, asked.references, asked.options)

    assert score(right) == pytest.approx(1.0, abs=1e-8)
    assert score(wrong) == 0.0
    assert score("") == 0.0
    assert score(f"{right}\n{wrong}") == (
        pytest.approx(1.0, abs=1e-8) if name in NO_CHAT else score(f"{right} {wrong}")
    )


def test_the_best_reference_counts(tmp_path: Path) -> None:
    write(tmp_path / "hotpotqa.jsonl", record("hotpotqa", answers=["a birch", "an oak tree"]))
    (case,) = LongBench(tmp_path).cases(characters())
    assert METRICS[query(case).metric]("oak tree", query(case).references, ()) == 1.0


@pytest.mark.parametrize("setting", ["plain", "2:64"])
def test_a_model_is_asked(folder: Path, tiny_model: Path, setting: str) -> None:
    names = ("multifieldqa_zh", "hotpotqa", "trec", "lsht", "passage_retrieval_en", "lcc")
    task = LongBench(folder, names, lengths=(160, 240), limit=1)
    results = list(evaluate([tiny_model], [task], [Setting.parse(setting)], options=Options(n_threads=1)))
    assert len(results) == 12
    for result in results:
        assert result.error == ""
        assert result.metric == DATASETS[str(result.axes["subtask"])].metric
        options = CLASSES.get(str(result.axes["subtask"]), ())
        assert result.score == METRICS[result.metric](result.answer, result.references, options)
        assert result.n_prompt == result.axes["n_tokens"] or result.axes["truncated"] == "no"
    repeated = list(evaluate([tiny_model], [task], [Setting.parse(setting)], options=Options(n_threads=1)))
    assert [replace(result, seconds=0.0) for result in repeated] == [replace(result, seconds=0.0) for result in results]


# -- files that are not as published


def test_a_folder_that_is_missing(tmp_path: Path) -> None:
    with pytest.raises(EvalError, match=r"nowhere is not a folder; it must hold the published files of LongBench$"):
        LongBench(tmp_path / "nowhere")


def test_a_folder_without_files(tmp_path: Path) -> None:
    with pytest.raises(
        EvalError, match=r"holds none of LongBench's files, such as narrativeqa\.jsonl, nor does data in"
    ):
        list(LongBench(tmp_path).cases(characters()))


def test_a_dataset_that_is_missing_or_unknown(folder: Path) -> None:
    (folder / "lcc.jsonl").unlink()
    with pytest.raises(EvalError, match=r"holds no file lcc\.jsonl, nor does data in it$"):
        LongBench(folder, ("lcc",))
    with pytest.raises(EvalError, match=r"^LongBench has no dataset 'squad'; it has narrativeqa, qasper, "):
        LongBench(folder, ("squad",))
    assert len(list(LongBench(folder, limit=1).cases(characters()))) == 20  # those that are there


@pytest.mark.parametrize(
    ("name", "line", "wanted"),
    [
        ("qasper", '{"input": "cut o', "this is no JSON object; each line must be one"),
        ("qasper", "[1, 2]", "this is no JSON object; each line must be one"),
        ("qasper", "[" * 100000, "this is no JSON object; each line must be one"),
        ("qasper", b'{"input": "\xff"}', "this is no JSON object; each line must be one"),
        ("qasper", record("qasper", context=None), "'context' must be a text"),
        ("qasper", record("qasper", input=3), "'input' must be a text"),
        ("qasper", record("qasper", answers="yes"), "'answers' must be a list of texts"),
        ("qasper", record("qasper", answers=[]), "'answers' must be a list of texts"),
        ("qasper", record("qasper", answers=[3]), "'answers' must be a list of texts"),
        ("trec", record("trec", all_classes=None), "'all_classes' must be a list of texts"),
        (
            "passage_retrieval_en",
            record("passage_retrieval_en", answers=["the third"]),
            "'answers' must be like 'Paragraph 1'",
        ),
        (
            "passage_retrieval_zh",
            record("passage_retrieval_zh", answers=["Paragraph 3"]),
            "'answers' must be like '段落1'",
        ),
    ],
)
def test_a_line_that_is_damaged(tmp_path: Path, name: str, line: object, wanted: str) -> None:
    path = write(tmp_path / f"{name}.jsonl", record(name), "")
    damaged = line if isinstance(line, bytes) else (line if isinstance(line, str) else json.dumps(line)).encode()
    path.write_bytes(path.read_bytes().replace(b'""\n', b"\n" + damaged + b"\n"))
    with pytest.raises(EvalError) as error:
        list(LongBench(tmp_path).cases(characters()))
    assert str(error.value) == f"{path}, line 3: {wanted}"
    assert len(list(LongBench(tmp_path, limit=1).cases(characters()))) == 1  # it is not read


def test_the_length_of_longbench_e_must_be_there(tmp_path: Path) -> None:
    path = write(tmp_path / "lcc_e.jsonl", record("lcc", length=None))
    with pytest.raises(EvalError, match=f"^{re.escape(str(path))}, line 1: 'length' must be an integer$"):
        list(LongBench(tmp_path, e=True).cases(characters()))


def test_an_empty_file_and_one_that_cannot_be_read(tmp_path: Path) -> None:
    path = write(tmp_path / "lcc.jsonl")
    with pytest.raises(EvalError, match=r"lcc\.jsonl is empty; each line must be a record$"):
        list(LongBench(tmp_path).cases(characters()))
    path.unlink()
    path.mkdir()
    with pytest.raises(EvalError, match="holds none of"):
        LongBench(tmp_path)


def test_a_library_that_is_missing_is_found_out_before_a_model_is_asked(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    require.cache_clear()
    monkeypatch.setitem(sys.modules, "rouge", None)  # as if it were not installed
    assert len(list(LongBench(folder, ("qasper",)).cases(characters()))) == 2
    with pytest.raises(MissingExtraError, match=r"^this needs rouge, which is not installed"):
        list(LongBench(folder, ("qasper", "samsum")).cases(characters()))


def test_a_length_that_is_too_small(folder: Path) -> None:
    wanted = "^5 tokens are too few for a prompt of LongBench's qasper; at least 13 are needed$"
    with pytest.raises(EvalError, match=wanted):
        list(LongBench(folder, ("qasper",), lengths=(5,)).cases(characters()))

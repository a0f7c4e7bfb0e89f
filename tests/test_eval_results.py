"""The file of results: whole lines, resumed, refused when it is something else."""

from __future__ import annotations

import json
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest

from pyselfextend import EvalError
from pyselfextend.eval.results import Result, ResultsFile, RunInfo, read_results

RESULT = Result(
    model="model.gguf",
    model_bytes=1,
    model_digest="89ab",
    n_ctx_train=512,
    setting="4:64",
    type_k="F16",
    type_v="F16",
    task="passkey",
    key="n_tokens=600 depth=0.5",
    digest="0123",
    axes={"n_tokens": 600, "depth": 0.5, "subtask": "zwölf"},
    n_prompt=600,
    seconds=1.25,
    score=1.0,
    answer='" \n\u2028 日本 \ud83d\ude00'.encode("utf-16", "surrogatepass").decode("utf-16"),
    references=("1", "2"),
    metric="contains_all",
    gold_log_prob=-7.5,
    n_gold=3,
)
RUN = RunInfo("2026-01-01T00:00:00+00:00", "0.1.0", "abcd", "a machine", "pyselfextend eval passkey model.gguf")


def test_what_is_written_is_read(tmp_path: Path) -> None:
    path = tmp_path / "new folder" / "results.jsonl"
    perplexity = replace(RESULT, task="ppl", score=None, nll=12.5, n_scored=4, answer="", references=())
    with ResultsFile(path) as file:
        for record in (RUN, RESULT, perplexity):
            file.append(record)
    assert read_results([path]) == ([RESULT, perplexity], [RUN])
    assert len(path.read_text(encoding="utf-8").splitlines()) >= 3
    assert path.read_bytes().count(b"\n") == 3  # whatever line breaks an answer holds


def test_a_right_answer_s_log_probability_is_a_mean() -> None:
    assert RESULT.gold_mean == -2.5
    assert replace(RESULT, gold_log_prob=None).gold_mean is None
    assert replace(RESULT, n_gold=0).gold_mean is None


def test_a_file_of_a_version_without_log_probabilities(tmp_path: Path) -> None:
    path = tmp_path / "results.jsonl"
    with ResultsFile(path) as file:
        file.append(RESULT)
    line = json.loads(path.read_text(encoding="utf-8"))
    del line["gold_log_prob"], line["n_gold"]
    path.write_text(json.dumps(line) + "\n", encoding="utf-8")
    assert read_results([path])[0] == [replace(RESULT, gold_log_prob=None, n_gold=0)]
    with ResultsFile(path) as file:
        assert file.done == {RESULT.identity}  # it is not asked again


def test_results_of_several_files(tmp_path: Path) -> None:
    for name, records in (
        ("a", [RUN, RESULT]),
        ("b", [RUN, replace(RESULT, setting="plain"), replace(RESULT, score=0.0)]),
    ):
        with ResultsFile(tmp_path / name) as file:
            for record in records:
                file.append(record)
    results, runs = read_results([tmp_path / "a", tmp_path / "b"])
    assert {(r.setting, r.score) for r in results} == {("4:64", 0.0), ("plain", 1.0)}  # the later one of two
    assert runs == [RUN, RUN]


def test_two_models_of_one_name_are_told_apart(tmp_path: Path) -> None:
    other = replace(RESULT, model_digest="0123456789")
    with ResultsFile(tmp_path / "a") as file:
        file.append(RESULT)
        file.append(other)
        file.append(replace(RESULT, model="third.gguf", model_digest="fedc"))
    names = [result.model for result in read_results([tmp_path / "a"])[0]]
    assert names == ["model.gguf (89ab)", "model.gguf (012345)", "third.gguf"]


def test_identity_is_all_that_was_asked() -> None:
    for name, value in {
        "model_digest": "cdef", "setting": "plain", "type_k": "Q8_0", "type_v": "Q8_0",
        "task": "niah", "key": "n_tokens=601", "digest": "4567",
    }.items():  # fmt: skip
        assert replace(RESULT, **{name: value}).identity != RESULT.identity  # type: ignore[arg-type]
    same = replace(RESULT, model="renamed.gguf", score=0.0, seconds=9.0, answer="", error="x")
    assert same.identity == RESULT.identity


@pytest.mark.parametrize("cut", [1, 10, 100])
def test_a_line_that_an_interruption_cut_off_is_taken_away(tmp_path: Path, cut: int) -> None:
    path = tmp_path / "results.jsonl"
    second = replace(RESULT, key="n_tokens=700")
    with ResultsFile(path) as file:
        file.append(RESULT)
        file.append(second)
    path.write_bytes(path.read_bytes()[:-cut])
    assert read_results([path])[0] == [RESULT]
    with ResultsFile(path) as file:
        assert file.done == {RESULT.identity}
        file.append(second)
        assert file.done == {RESULT.identity, second.identity}
    assert read_results([path])[0] == [RESULT, second]


def test_failed_cases_count_unless_they_are_tried_again(tmp_path: Path) -> None:
    path = tmp_path / "results.jsonl"
    failed = replace(RESULT, key="n_tokens=700", score=None, error="it failed")
    with ResultsFile(path) as file:
        file.append(RESULT)
        file.append(failed)
    with ResultsFile(path) as file:
        assert file.done == {RESULT.identity, failed.identity}
    with ResultsFile(path, retry_failed=True) as file:
        assert file.done == {RESULT.identity}


@pytest.mark.parametrize(
    "content", ["a letter\n", "a letter", '{"type": "letter"}\n', '{"type": "result"}\n', "[1]\n", "\0"]
)
def test_another_file_is_refused_and_left_alone(tmp_path: Path, content: str) -> None:
    path = tmp_path / "letter.txt"
    path.write_text(content)
    with pytest.raises(EvalError, match=r"letter\.txt is not a file of results"):
        ResultsFile(path)
    assert path.read_text() == content
    if content.endswith("\n"):
        with pytest.raises(
            EvalError, match=r"letter\.txt is not a file of results: (line 1 is something else|it holds none)"
        ):
            read_results([path])


def test_a_file_that_nothing_is_written_to_is_as_it_was(tmp_path: Path) -> None:
    empty, link, new = tmp_path / "empty", tmp_path / "link", tmp_path / "new"
    empty.write_bytes(b"")
    link.symlink_to("empty")
    for path in (empty, link, new):
        with ResultsFile(path):
            pass
    assert {path.name for path in tmp_path.iterdir()} == {"empty", "link"}
    assert link.is_symlink() and empty.read_bytes() == b""


def test_files_that_cannot_be_opened(tmp_path: Path) -> None:
    with pytest.raises(EvalError, match="cannot be written: Is a directory"):
        ResultsFile(tmp_path)
    with pytest.raises(EvalError, match=r"missing\.jsonl cannot be read: No such file or directory"):
        read_results([tmp_path / "missing.jsonl"])
    (tmp_path / "file").write_text("")
    with pytest.raises(EvalError, match="cannot be written: "):
        ResultsFile(tmp_path / "file" / "results.jsonl")


def test_two_processes_do_not_write_one_file(tmp_path: Path) -> None:
    path = tmp_path / "results.jsonl"
    code = (
        "import sys\nfrom pathlib import Path\nfrom pyselfextend import EvalError\n"
        "from pyselfextend.eval.results import ResultsFile\n"
        "try: ResultsFile(Path(sys.argv[1]))\nexcept EvalError as error: print(error)\nelse: print('opened')"
    )

    def another() -> str:
        command = [sys.executable, "-c", code, str(path)]
        return subprocess.run(command, capture_output=True, text=True, timeout=60, check=True).stdout.strip()

    with ResultsFile(path) as file:
        file.append(RUN)
        assert another() == f"{path} is being written by another process"
    assert another() == "opened"


@pytest.mark.parametrize(
    ("name", "value"),
    [("score", "x"), ("axes", None), ("axes", {"n_tokens": None}), ("n_prompt", "z"), ("seconds", "abc"), ("model", 5),
     ("references", [1]), ("references", 7), ("nll", []), ("type", ["result"])],
)  # fmt: skip
def test_values_of_another_kind(tmp_path: Path, name: str, value: object) -> None:
    path = tmp_path / "results.jsonl"
    with ResultsFile(path) as file:
        file.append(RESULT)
    path.write_text(json.dumps({**json.loads(path.read_text(encoding="utf-8")), name: value}) + "\n", encoding="utf-8")
    with pytest.raises(EvalError, match=r"results\.jsonl is not a file of results: line 1 is something else"):
        read_results([path])


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="needs /dev/full")
def test_a_full_disk_is_one_line(tmp_path: Path) -> None:
    path = tmp_path / "results.jsonl"
    with ResultsFile(path) as file:
        file.append(RESULT)
        before = path.read_bytes()
        with open("/dev/full", "r+b", buffering=0) as full:
            whole, file._file = file._file, full
            with pytest.raises(EvalError, match="cannot be written: No space left on device"):
                file.append(RUN)
            file._file = whole
    assert path.read_bytes() == before


def test_a_later_version_may_say_more(tmp_path: Path) -> None:
    path = tmp_path / "results.jsonl"
    with ResultsFile(path) as file:
        file.append(RESULT)
    line = json.loads(path.read_text(encoding="utf-8"))
    news = json.dumps({"type": "weather", "sun": True})
    path.write_text(json.dumps({**line, "mood": "good"}) + f"\n{news}\n", encoding="utf-8")
    assert read_results([path])[0] == [RESULT]

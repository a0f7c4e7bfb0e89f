"""Groups that were measured: where they are found, what is left aside, and that ``auto`` reads with them."""

from __future__ import annotations

import dataclasses
import json
import pickle
import subprocess
import sys
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import architectures
import numpy as np
import pytest
from test_llama import QUIET, some_tokens

from pyselfextend import Llama, SettingError, measured
from pyselfextend.bench.plan import make_plan as make_bench_plan
from pyselfextend.bench.records import Results
from pyselfextend.eval.model import EvalModel
from pyselfextend.eval.report.items import auto_window, is_measured, kind_of
from pyselfextend.eval.settings import Rope, Setting
from pyselfextend.fingerprint import fingerprint
from pyselfextend.groups import GroupTable, ga_n_auto
from pyselfextend.plan import make_plan

L, W, N_CTX = 128, 16, 1024

#: Not what the rule takes at any of these lengths: 1, 2, 8.
TABLE: GroupTable = ((L, 2), (200, 6), (500, 5))

Store = Callable[..., Path]


@pytest.fixture(scope="module")
def path(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return Path(architectures.make_tiny().make(tmp_path_factory.mktemp("measured") / "llama.gguf", "llama", L))


@pytest.fixture
def store(path: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Store:
    """Puts a result into a data folder of this test."""
    monkeypatch.setenv("PYSELFEXTEND_DATA_DIR", str(tmp_path / "data"))

    def write(content: str | bytes | None = None, ga_w: int = W, **fields: Any) -> Path:
        digest = fingerprint(path)
        place = measured.place(digest, ga_w)
        assert place is not None
        document = {
            "format": "pyselfextend-tune", "version": 1, "digest": digest, "n_ctx_train": L, "ga_w": ga_w,
            "groups": TABLE, **fields,
        }  # fmt: skip
        place.parent.mkdir(parents=True, exist_ok=True)
        data = json.dumps(document) if content is None else content
        place.write_bytes(data.encode() if isinstance(data, str) else data)
        return place

    return write


def open_auto(path: Path, **options: Any) -> Llama:
    return Llama(str(path), **{**QUIET, "n_ctx": N_CTX, "n_batch": 64, **options})


def groups_of(llm: Llama, lengths: tuple[int, ...]) -> list[int]:
    found = []
    for n_tokens in lengths:
        llm.reset()
        llm.eval(some_tokens(n_tokens))
        found.append(llm.self_extend.ga_n)
    return found


#
# where it is found
#


def test_the_data_folder(monkeypatch: pytest.MonkeyPatch) -> None:
    names = ("PYSELFEXTEND_DATA_DIR", "XDG_DATA_HOME", "LOCALAPPDATA", "HOME")
    expected = ["a", "b/pyselfextend", "c/pyselfextend/data", "d/.local/share/pyselfextend"]
    for name, value in zip(names, "abcd", strict=True):
        monkeypatch.setenv(name, value)
    for i, name in enumerate(names):
        assert measured.data_dir() == Path(expected[i])
        monkeypatch.setenv(name, "") if i % 2 else monkeypatch.delenv(name)  # an empty one is none
    assert measured.data_dir() is None
    assert measured.place("0123456789abcdef", 64) is None


def test_it_is_found_by_the_model_and_the_window(path: Path, store: Store, tmp_path: Path) -> None:
    assert measured.groups(path, L, W) == ()  # there is no folder yet
    store()
    store(ga_w=20, groups=[[L, 1]])
    copy = tmp_path / "other.gguf"
    copy.write_bytes(path.read_bytes())
    other = Path(architectures.make_tiny().make(tmp_path / "another.gguf", "qwen2", L))
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert measured.groups(path, L, W) == measured.groups(copy, L, W) == TABLE
        assert measured.groups(path, L, 20) == ((L, 1),)
        assert measured.groups(path, L, 17) == measured.groups(other, L, W) == ()
        assert measured.groups(path, 256, W) == ()  # kv_overrides have made it another model
        assert measured.groups_by_window(path, L) == {W: TABLE, 20: ((L, 1),)}
        assert measured.groups_by_window(other, L) == {}


@pytest.mark.parametrize(
    ("fields", "reason"),
    [
        ({"content": ""}, "it is damaged"),
        ({"content": b"\xff\xfe"}, "it is damaged"),
        ({"content": '{"format": "pyselfextend-tune"'}, "it is damaged"),
        ({"content": "[" * 100_000}, "it is damaged"),
        ({"content": "[]"}, "it is not a result of pyselfextend-tune"),
        ({"format": "pyselfextend-bench"}, "it is not a result of pyselfextend-tune"),
        ({"version": 2}, "it is of version 2, and this one reads 1"),
        ({"digest": "0123456789abcdef"}, "it is of another model or neighbour window"),
        ({"n_ctx_train": "128"}, "it is damaged"),
        ({"n_ctx_train": W}, "it is damaged"),
        ({"groups": None}, "it is damaged"),
        ({"groups": []}, "it is not finished"),
        ({"groups": [[L, 1], [L, 2]]}, "it is damaged: its lengths do not ascend"),
        ({"groups": [[L, 1, 1]]}, r"it is damaged: \[128, 1, 1\] is not a length and a group"),
        ({"groups": [[L, True]]}, r"it is damaged: \[128, True\] is not a length and a group"),
        ({"groups": [[L, 0]]}, r"it is damaged: \[128, 0\] is not a length and a group"),
        ({"groups": [[L + 1, 1]]}, "it is damaged: group 1 does not reach 129 tokens"),
    ],
)
def test_what_is_something_else_is_left_aside(path: Path, store: Store, fields: dict[str, Any], reason: str) -> None:
    place = store(**fields)
    message = rf'{place} is left aside, and ga_n="auto" follows the authors\' rule: {reason}$'
    with pytest.warns(RuntimeWarning, match=message):
        assert measured.groups(path, L, W) == ()
    with pytest.warns(RuntimeWarning, match=message):
        assert measured.groups_by_window(path, L) == {}
    with pytest.warns(RuntimeWarning, match=message), open_auto(path) as llm:
        assert groups_of(llm, (100, 200)) == [1, ga_n_auto(L, W, 200)]
        assert not llm.self_extend.is_measured


def test_a_file_that_cannot_be_read(path: Path, store: Store) -> None:
    place = store()
    place.unlink()
    place.mkdir()
    with pytest.warns(RuntimeWarning, match=f"{place} is left aside.*: Is a directory"):
        assert measured.groups(path, L, W) == ()


def test_a_folder_that_cannot_be_looked_at(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PYSELFEXTEND_DATA_DIR", "x" * 5000)
    assert measured.groups(path, L, W) == ()
    assert measured.groups_by_window(path, L) == {}


def test_it_can_be_left_aside(path: Path, store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    store()
    for value, expected in (("rule", ()), ("measured", TABLE), ("", TABLE)):
        monkeypatch.setenv("PYSELFEXTEND_GROUPS", value)
        assert measured.groups(path, L, W) == expected
    monkeypatch.setenv("PYSELFEXTEND_GROUPS", "off")
    with pytest.raises(SettingError, match="PYSELFEXTEND_GROUPS is 'off'; it must be measured or rule"):
        open_auto(path)


#
# what uses it
#


def test_llama_reads_with_the_groups_that_were_measured(path: Path, store: Store) -> None:
    lengths = (50, L, 150, 200, 300, 500, 501, N_CTX)
    with open_auto(path) as llm:
        by_rule = groups_of(llm, lengths)
        assert not llm.self_extend.is_measured
    store()
    with open_auto(path) as llm:
        assert groups_of(llm, lengths) == [2, 2, 6, 6, 5, 5, ga_n_auto(L, W, 501), ga_n_auto(L, W, N_CTX)]
        assert groups_of(llm, lengths) != by_rule
        assert llm.self_extend.is_measured
        assert "groups as measured by tune" in str(llm.self_extend)
        with pickle.loads(pickle.dumps(llm)) as again:
            assert groups_of(again, (200,)) == [6]
        llm.reset()
        tokens = some_tokens(200)
        llm.eval(tokens)
        logits = np.array(llm._ctx.get_logits_ith(-1)[: llm.n_vocab()])
    with open_auto(path, ga_n=6, n_ctx=200) as fixed:
        fixed.eval(tokens)
        assert np.array_equal(np.array(fixed._ctx.get_logits_ith(-1)[: fixed.n_vocab()]), logits)


def test_llama_without(path: Path, store: Store) -> None:
    """With another window, a scaling of the positions, or a context as trained, nothing that was measured counts."""
    store()
    for options in ({"ga_w": 20}, {"ga_n": "auto", "rope_freq_scale": 0.5}):
        with open_auto(path, **options) as llm:
            assert not llm.self_extend.is_measured
            assert groups_of(llm, (100,)) == [1]
    with open_auto(path, n_ctx=L, ga_n="auto") as llm:
        assert llm.self_extend.ga_n_max == 1


def test_other_maps_are_not_read_with_it(path: Path, store: Store) -> None:
    """It was measured with SelfExtend's own."""
    store()
    with Llama(str(path), ga_n="auto", ga_w=W, ga_map="jet-long", n_ctx=N_CTX, **QUIET) as llm:
        llm.eval(some_tokens(200))
        assert (llm.self_extend.ga_n, llm.self_extend.is_measured) == (2, False)
    assert not make_plan(path, 200, ga_w=W, ga_map="jet-long").is_measured
    setting = Setting.parse(f"jet-long:{W}").resolve(Rope.of(path), N_CTX)
    assert (setting.group(Rope.of(path), 200), str(setting)) == (2, f"jet-long:{W}")


def test_a_chat_keeps_its_group(path: Path, store: Store) -> None:
    store(groups=[[L, 1], [200, 6], [500, 5]])
    with open_auto(path) as llm:
        llm.eval(some_tokens(100))
        assert llm.self_extend.ga_n == 1
        llm.eval(some_tokens(60))
        assert llm.self_extend.ga_n == 6
        llm.eval(some_tokens(200))
        assert llm.self_extend.ga_n == 6  # 5 was measured to be better, for a text that is read with it


def test_plan_says_what_was_measured(path: Path, store: Store) -> None:
    by_rule = make_plan(path, 450)
    assert not by_rule.is_measured
    store()
    plan = make_plan(path, 450)
    assert plan.is_measured
    assert [(each.ga_n, each.n_tokens) for each in plan.auto] == [(2, L), (6, 200), (5, 500)]
    assert plan.recommended is not None
    assert (plan.recommended.ga_n, plan.recommended.ga_w) == (5, W)
    assert plan.why == "pyselfextend tune has measured on this model that it reads 500 tokens best with it"
    assert plan.recommended in plan.pairs
    beyond = make_plan(path, 520)
    assert beyond.recommended is not None
    assert beyond.recommended.ga_n == ga_n_auto(L, W, 520) == 8
    assert "the authors' rule" in beyond.why
    assert make_plan(path, L).auto == make_plan(path, L).auto[:1]  # a context as trained is plain
    assert not make_plan(path, L).is_measured
    assert not make_plan(path, 450, ga_w=20).is_measured


def test_the_plan_command_says_it(path: Path, store: Store) -> None:
    store(groups=[[L, 1], [300, 8]])

    def run(*words: str) -> str:
        return subprocess.run(
            [sys.executable, "-m", "pyselfextend", "plan", str(path), *words],
            capture_output=True,
            text=True,
            check=True,
        ).stdout

    text = " ".join(run("--ctx", "250").split())
    assert "auto: ga_n=8 for 250 tokens (plain up to 128, 8 up to 570; as tune has measured)" in text
    assert (
        "ga_n=8, ga_w=16 is recommended: pyselfextend tune has measured on this model that it reads 300 tokens" in text
    )
    assert "tune has measured that for 300 tokens, and the authors' rule asks for no more" in " ".join(
        run("--ctx", "500").split()
    )
    assert json.loads(run("--ctx", "500", "--json"))["is_measured"] is True


def test_eval_asks_with_it_under_another_name(path: Path, store: Store) -> None:
    by_rule = Setting.parse("auto").resolve(Rope.of(path), N_CTX)
    store()
    rope = Rope.of(path)
    setting = Setting.parse("auto").resolve(rope, N_CTX)
    assert (str(by_rule), setting.table) == (f"auto:{W}", TABLE)
    name = str(setting)
    assert name.startswith(f"auto:{W}+")
    assert (kind_of(name), is_measured(name), is_measured(str(by_rule))) == ("auto", True, False)
    from pyselfextend.eval.report.items import Subject
    from pyselfextend.eval.report.texts import setting_text

    subject = Subject("m", 1, L, "F16", "F16")
    assert auto_window(name, subject) == W
    assert "measured" in setting_text(name, subject)
    assert [setting.group(rope, n) for n in (50, 150, 500, 600)] == [2, 6, 5, ga_n_auto(L, W, 600)]
    store(groups=[[L, 2], [200, 6]])
    assert str(Setting.parse("auto").resolve(Rope.of(path), N_CTX)) not in (name, str(by_rule))
    store()

    tokens = tuple(some_tokens(180))
    with EvalModel(path, setting, rope, N_CTX, n_threads=1) as model:
        found = model.log_probs(tokens[:150], tokens[150:]).values
        assert model._llm.self_extend.ga_n == 6
    with EvalModel(path, Setting("pair", 6, W), rope, 600, n_threads=1) as model:
        assert np.array_equal(model.log_probs(tokens[:150], tokens[150:]).values, found)


def test_bench_measures_with_it(path: Path, store: Store) -> None:
    store()
    plan = make_bench_plan(path, depths=[0, 180, 400, 700], stock=False, plain=False, n_prefill=8, n_decode=1)
    (auto,) = plan.configurations
    assert auto.table == TABLE
    assert auto.ga_n_max == 16
    assert [plan.group(auto, depth) for depth in plan.depths] == [2, 6, 5, ga_n_auto(L, W, 708)]
    machine = {"cpu": "", "cores": 1, "date": ""}
    from pyselfextend.bench.machine import Machine

    values = {f.name: machine.get(f.name, "") for f in dataclasses.fields(Machine)}
    results = Results(Machine(**values), plan, ())  # type: ignore[arg-type]
    assert Results.from_json(results.to_json()).plan == plan

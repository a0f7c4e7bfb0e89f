"""Settings: how they are written, what they need of a model, and that the engine makes of them what is published."""

from __future__ import annotations

from fractions import Fraction
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from reference import Reference, log_softmax
from test_reference import some_tokens
from yardstick import Distance

from pyselfextend import ModelFileError, NotAnIntegerError, SettingError
from pyselfextend.eval.model import EvalModel
from pyselfextend.eval.settings import Rope, Setting

ROPE = Rope(8192, 100000.0, 64)

SETTINGS = [
    "plain", "auto", "auto:1024", "auto:0", "4:1024", "4:", "2:0", "yarn", "ntk:2.5", "mrrope", "mrrope:4", "jet-long",
    "jet-long:2048", "jet-long:4:1024", "rerope:2:", "leaky", "lampe:96:1024",
]  # fmt: skip


@pytest.mark.parametrize("text", SETTINGS)
def test_a_setting_reads_as_it_is_written(text: str) -> None:
    assert str(Setting.parse(text)) == text
    assert Setting.parse(str(Setting.parse(text))) == Setting.parse(text)


@pytest.mark.parametrize(
    "text",
    [
        "",
        "Plain",
        "plain:2",
        "4",
        ":4",
        "rerope:",
        "rerope:x",
        "rerope:4:1024:1",
        "rerope:auto",
        "auto:4:",
        "mrrope:4:0",
        "self-extend",
        "4:-1",
        "4:1024:1",
        "dynamic",
        "yarn-4",
        "4.5:1",
        "auto:",
        "auto:-1",
        "auto:4:64",
        "auto:x",
        "auto:1.5",
    ],
)
def test_what_is_no_setting(text: str) -> None:
    allowed = r"it must be plain, auto, .* G:W .*jet-long.*yarn|its factor must be a whole number"
    with pytest.raises(SettingError, match=rf"the setting is .*; ({allowed})"):
        Setting.parse(text)


@pytest.mark.parametrize("text", ["yarn:0", "yarn:0.5", "ntk:", "linear:x", "yarn:nan", "yarn:inf", "yarn:2000"])
def test_factors_that_are_not_allowed(text: str) -> None:
    with pytest.raises(SettingError, match=r"its factor must be a number from 1 to 1024$"):
        Setting.parse(text)


@pytest.mark.parametrize("text", ["1:64", "0:64", "99999999999:64", "4:99999999999", "auto:99999999999"])
def test_pairs_and_windows_that_are_not_allowed(text: str) -> None:
    with pytest.raises(SettingError, match=r"ga_[nw] is [0-9]+; it must be an integer from"):
        Setting.parse(text)
    assert issubclass(NotAnIntegerError, SettingError)


def test_a_factor_that_is_left_open_fits_the_context() -> None:
    assert str(Setting.parse("yarn").resolve(ROPE, 16384)) == "yarn:2"
    assert str(Setting.parse("ntk").resolve(ROPE, 16385)) == "ntk:2.01"
    assert str(Setting.parse("linear").resolve(ROPE, 100)) == "linear:1"
    assert str(Setting.parse("yarn:4").resolve(ROPE, 16384)) == "yarn:4"
    for text in ("plain", "4:1024"):
        assert Setting.parse(text).resolve(ROPE, 16384) == Setting.parse(text)


@pytest.mark.parametrize("n_ctx", [100, 16384])
def test_a_window_that_is_left_open_is_the_model_s(n_ctx: int) -> None:
    """Whatever the context is: the results of one setting have one name."""
    assert str(Setting.parse("auto").resolve(ROPE, n_ctx)) == "auto:1024"
    assert str(Setting.parse("auto").resolve(Rope(131072, 10000.0, 64), n_ctx)) == "auto:2048"
    assert Setting.parse("auto:1024").resolve(ROPE, n_ctx) == Setting.parse("auto").resolve(ROPE, n_ctx)
    assert str(Setting.parse("auto:7").resolve(ROPE, n_ctx)) == "auto:7"


@pytest.mark.parametrize("text", ["2:8192", "auto:8192"])
def test_a_window_that_does_not_fit_the_model(text: str) -> None:
    with pytest.raises(SettingError, match="ga_w is 8192; it must be below the trained context of 8192 tokens"):
        Setting.parse(text).resolve(ROPE, 16384)


def test_which_group_reads_a_text() -> None:
    """Of auto a power of two by the authors' rule, ``2/3 * L > W + (N - W) / G``, and 1 inside the trained window."""
    auto = Setting.parse("auto:1024").resolve(ROPE, 16384)
    seen = set()
    for n_tokens in (1, 8191, 8192, 8193, *range(8200, 70000, 1531)):
        expected = 1 if n_tokens <= 8192 else 2
        while expected > 1 and 2 * 8192 * expected <= 3 * (1024 * expected + n_tokens - 1024):
            expected *= 2
        assert auto.group(ROPE, n_tokens) == expected
        seen.add(expected)
    assert seen == {1, 2, 4, 8, 16}
    for text, ga_n in (("plain", 1), ("4:1024", 4), ("yarn:2", 1)):
        assert Setting.parse(text).group(ROPE, 100) == Setting.parse(text).group(ROPE, 16384) == ga_n


def test_how_far_settings_reach() -> None:
    assert Setting.parse("4:1024").n_ctx_max(ROPE) == (8192 - 1024) * 4 + 1024
    assert Setting.parse("jet-long:4:1024").n_ctx_max(ROPE) == 4 * 8192
    assert Setting.parse("mrrope:3").n_ctx_max(ROPE) == 3 * 8192
    assert Setting.parse("jet-long").n_ctx_max(ROPE) is None
    for text in ("plain", "auto", "yarn:4"):
        assert Setting.parse(text).n_ctx_max(ROPE) is None
        assert Setting.parse(text).n_ctx_max(Rope(8192, 0.0, 0, is_learned=True)) == 8192


@pytest.mark.parametrize("text", ["plain", "yarn:4", "linear:4", "ntk:4"])
def test_what_is_not_selfextend_says_so(text: str) -> None:
    """Without, a longer context would be one with SelfExtend."""
    assert Setting.parse(text).arguments(ROPE)["ga_n"] == 1


def test_arguments_of_selfextend() -> None:
    for text, expected in [
        ("4:64", {"ga_n": 4, "ga_w": 64, "ga_map": "self-extend"}),
        ("4:", {"ga_n": 4, "ga_w": 1024, "ga_map": "self-extend"}),
        ("auto", {"ga_n": "auto", "ga_w": 1024, "ga_map": "self-extend"}),
        ("jet-long", {"ga_n": "auto", "ga_w": 1024, "ga_map": "jet-long"}),
        ("rerope:2:512", {"ga_n": 2, "ga_w": 512, "ga_map": "rerope"}),
        ("mrrope", {"ga_n": 2, "ga_map": "mrrope"}),
    ]:
        assert Setting.parse(text).resolve(ROPE, 9000).arguments(ROPE) == expected


def test_groups_of_other_maps() -> None:
    """As their sources have it: Jet-Long the smallest that reaches, LaMPE's ratio to two thirds of the window here."""
    for text, groups in [
        ("jet-long", {8192: 1, 8193: 2, 16384: 2, 16385: 3, 32768: 4}),
        ("rerope", {8192: 1, 8193: 2, 60000: 2}),
        ("leaky", {8192: 1, 9000: 2, 10000: 4, 20000: 8}),
        ("lampe", {8192: 64, 9000: 116, 16384: 222}),
    ]:
        setting = Setting.parse(text).resolve(ROPE, 32768)
        assert {n: setting.group(ROPE, n) for n in groups} == groups, text
    group = Fraction(222, 64)
    assert 1024 + (16384 - 1024) / group < Fraction(2, 3) * 8192 <= 1024 + (16384 - 1024) / Fraction(221, 64)


@pytest.mark.parametrize("text", ["leaky:3:64", "lampe:32:64"])
def test_groups_that_a_map_does_not_have(text: str) -> None:
    with pytest.raises(SettingError, match=r"ga_n is [0-9]+; it must be (a power of two|at least 64)"):
        Setting.parse(text)


def test_what_a_file_says(tiny_models: dict[str, Path], tmp_path: Path) -> None:
    assert Rope.of(tiny_models["llama"]) == Rope(512, 10000.0, 32)
    assert Rope.of(tiny_models["stablelm"]) == Rope(512, 10000.0, 8)
    assert Rope.of(tiny_models["llama-yarn"]).scaling == "yarn"
    with pytest.raises(
        SettingError, match=r"ntk would replace the RoPE scaling that the model itself declares \(yarn\)"
    ):
        Setting.parse("ntk").resolve(Rope.of(tiny_models["llama-yarn"]), 600)
    with pytest.raises(ModelFileError, match=r"missing\.gguf"):
        Rope.of(tmp_path / "missing.gguf")


class Scaled(Reference):
    """The reference of a model whose file would declare other positions than it does."""

    def __init__(self, path: Path, **keys: Any) -> None:
        self.keys = keys
        super().__init__(path)

    def _meta(self, name: str, default: Any = None) -> Any:
        return self.keys.get(name, super()._meta(name, default))


#: Base of the frequencies and rotated dimensions.
ROPES = {"llama": (10000.0, 32), "stablelm": (10000.0, 8), "qwen2": (1000000.0, 32)}


def published(setting: str, path: Path, freq_base: float, n_rot: int) -> Reference:
    """What the papers say a setting with a factor is, on a model that was trained on 512 tokens."""
    kind, _, factor = setting.partition(":")
    if kind == "ntk":
        return Scaled(path, **{"rope.freq_base": freq_base * float(factor) ** (n_rot / (n_rot - 2))})
    scaling = {"rope.scaling.type": kind, "rope.scaling.factor": float(factor)}
    return Scaled(path, **scaling, **{"rope.scaling.original_context_length": 512})


@pytest.mark.parametrize("name", ROPES)
@pytest.mark.parametrize(
    "setting",
    ["plain", "4:64", "3:100", "yarn:2", "linear:2", "ntk:2", "mrrope:2", "jet-long:2:64", "lampe:112:64", "leaky:64"],
)
def test_the_engine_computes_what_is_published(
    tiny_models: dict[str, Path], yardstick: Distance, name: str, setting: str
) -> None:
    path = tiny_models[name]
    tokens = tuple(map(int, some_tokens(700)))
    parsed = Setting.parse(setting)
    if parsed.kind in ("plain", "pair", "auto", "mrrope"):
        reference = Reference(path)
        reference.ga_map = "mrrope" if parsed.kind == "mrrope" else parsed.ga_map
        ga_n = int(parsed.factor) if parsed.factor else parsed.group(Rope.of(path), len(tokens))
        exact = reference.logits(tokens, ga_n, parsed.ga_w or 0)
    else:
        exact = published(setting, path, *ROPES[name]).logits(tokens)
    expected = log_softmax(exact)[np.arange(99, 699), tokens[100:]]
    with EvalModel(
        path, parsed, Rope.of(path), 768, type_k="F32", type_v="F32", flash_attn=False, n_threads=1
    ) as model:
        found = model.log_probs(tokens[:100], tokens[100:])
    assert np.abs(found.values - expected).max() < 1e-4 + 10 * yardstick.largest
    assert (found.greedy == (exact[99:699].argmax(axis=1) == tokens[100:])).mean() > 0.995
    other = log_softmax(Reference(path).logits(tokens))[np.arange(99, 699), tokens[100:]]
    if setting != "plain":
        assert np.abs(found.values - other).max() > 100 * np.abs(found.values - expected).max()  # it is not plain

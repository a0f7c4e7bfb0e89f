"""Settings: what is accepted, what is refused, and with which words."""

from __future__ import annotations

import dataclasses
import json

import numpy as np
import pytest

from pyselfextend.config import SETTING_MAX, SelfExtendConfig
from pyselfextend.errors import NotAnIntegerError, SelfExtendError, SettingError
from pyselfextend.info import SelfExtendInfo
from pyselfextend.placement import Attention, DeviceMemory, attention_from, describe, group, ranges


def test_default_is_the_plain_model() -> None:
    assert SelfExtendConfig() == SelfExtendConfig(ga_n=1, ga_w=None)
    assert SelfExtendConfig().is_plain
    assert not SelfExtendConfig(ga_n=2).is_plain


@pytest.mark.parametrize("ga_n", [1, 2, SETTING_MAX, np.int8(4), np.uint64(4), np.array(4)])
@pytest.mark.parametrize("ga_w", [None, 0, 1, SETTING_MAX, np.int16(64)])
def test_accepted_as_plain_integers(ga_n: int, ga_w: int | None) -> None:
    config = SelfExtendConfig(ga_n, ga_w)
    assert type(config.ga_n) is int
    assert config.ga_n == int(ga_n)
    assert config.ga_w is None if ga_w is None else type(config.ga_w) is int
    assert config.ga_w == ga_w


@pytest.mark.parametrize("value", [0, -1, SETTING_MAX + 1, np.int64(-3)])
def test_group_size_out_of_range(value: int) -> None:
    allowed = f"an integer from 1 to {SETTING_MAX}, or 'auto'"
    with pytest.raises(SettingError, match=f"^ga_n is {value}; it must be {allowed}$"):
        SelfExtendConfig(ga_n=value)


@pytest.mark.parametrize("value", [-1, SETTING_MAX + 1])
def test_window_out_of_range(value: int) -> None:
    with pytest.raises(SettingError, match=f"^ga_w is {value}; it must be an integer from 0 to {SETTING_MAX}$"):
        SelfExtendConfig(ga_n=4, ga_w=value)


@pytest.mark.parametrize("value", [2.0, np.float32(2), float("nan"), "2", b"2", True, np.True_, [2], np.array([2]), 2j])
@pytest.mark.parametrize("name", ["ga_n", "ga_w"])
def test_not_an_integer(name: str, value: object) -> None:
    with pytest.raises(NotAnIntegerError) as caught:
        SelfExtendConfig(**{name: value})  # type: ignore[arg-type]
    assert str(caught.value).startswith(f"{name} is {value!r} of type {type(value).__name__}; it must be an integer")
    assert isinstance(caught.value, ValueError)
    assert isinstance(caught.value, TypeError)
    assert isinstance(caught.value, SelfExtendError)


def test_a_bad_window_is_refused_for_the_plain_model_too() -> None:
    with pytest.raises(SettingError, match=r"^ga_w is -5; "):
        SelfExtendConfig(ga_n=1, ga_w=-5)


def test_frozen() -> None:
    with pytest.raises(dataclasses.FrozenInstanceError):
        SelfExtendConfig(2).ga_n = 3  # type: ignore[misc]


def test_description_reads_well() -> None:
    info = SelfExtendInfo(
        ga_n=4,
        ga_n_max=4,
        ga_w=1024,
        n_ctx_train=8192,
        n_ctx_reach=29696,
        bytes_far=3 * 2**20,
        bytes_near=2**19,
        attention=(Attention("fused", "CPU", tuple(range(30))),),
        memory=(DeviceMemory("CPU", 5 * 2**20, 2**20, 2**19),),
    )
    assert str(info) == (
        "SelfExtend ga_n=4 ga_w=1024, trained context 8192 tokens, reach 29696 tokens, "
        "KV cache 3.0 MiB far + 0.5 MiB near, attention fused on CPU (30 layers), memory 6.5 MiB on CPU"
    )
    both = dataclasses.replace(info, memory=(*info.memory, DeviceMemory("CUDA0", 2**20, 0, 0)))
    assert str(both).endswith(", memory 6.5 MiB on CPU, 1.0 MiB on CUDA0")
    follows = dataclasses.replace(info, ga_n=2, ga_n_max=8)
    assert str(follows).startswith("SelfExtend ga_n=2 (beyond 15360 tokens up to 8) ga_w=1024, trained context 8192")
    assert follows.n_ctx_next == 15360  # (8192 - 1024 + 512) * 2
    plain = dataclasses.replace(info, ga_n=1, ga_n_max=1, n_ctx_reach=8192, attention=())
    assert str(plain) == "plain model (ga_n=1), trained context 8192 tokens, memory 6.5 MiB on CPU"
    assert plain.n_ctx_next == 8192
    assert len({info, both, plain, dataclasses.replace(info)}) == 3  # hashable


def test_layers_by_way_and_device() -> None:
    layers = [
        (0, "fused", "CPU"),
        (1, "fused", "CPU"),
        (2, "fused", "CUDA0"),
        (4, "composed", "CUDA0"),
        (5, "fused", "CPU"),
    ]
    found = group(layers)
    assert found == (
        Attention("fused", "CPU", (0, 1, 5)),
        Attention("fused", "CUDA0", (2,)),
        Attention("composed", "CUDA0", (4,)),
    )
    assert describe(found) == "fused on CPU (layers 0-1, 5), on CUDA0 (layer 2), composed on CUDA0 (layer 4)"
    assert describe(found[1:2]) == "fused on CUDA0 (1 layer)"
    assert describe(()) == ""
    assert group(()) == ()
    assert attention_from(json.loads(json.dumps([dataclasses.asdict(each) for each in found]))) == found
    info = SelfExtendInfo(2, 2, 0, 512, 1024, 0, 0, found, ())
    assert (info.n_layer_fused, info.n_layer_composed) == (4, 1)
    assert ranges([0, 1, 2, 4, 6, 7]) == "0-2, 4, 6-7"
    assert DeviceMemory("CPU", 1, 20, 300).n_bytes == 321

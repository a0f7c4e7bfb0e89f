"""What a server is started with: the context of a slot where none is asked for, its options, and what is refused."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import unsupported
from architectures import make_tiny

from pyselfextend import ModelFileError, SettingError, measured
from pyselfextend import plan as planning
from pyselfextend.fingerprint import fingerprint
from pyselfextend.memory import FreeMemory
from pyselfextend.server import ServerSetting, default_n_ctx, make_setting


def model(folder: Path, n_ctx_train: int, name: str = "llama") -> Path:
    path: Path = make_tiny().make(folder / f"{name}-{n_ctx_train}.gguf", name, n_ctx_train)
    return path


@pytest.mark.parametrize(
    ("n_ctx_train", "expected"), [(512, 2048), (4096, 16384), (8192, 32768), (10000, 32768), (40000, 40000)]
)
def test_the_context_of_a_slot(tmp_path: Path, n_ctx_train: int, expected: int) -> None:
    assert default_n_ctx(model(tmp_path, n_ctx_train)) == expected


def test_a_model_that_cannot_be_extended_has_its_own_context(tmp_path: Path) -> None:
    path = unsupported.make(tmp_path / "bloom.gguf", "bloom", make_tiny().vocabulary())
    assert default_n_ctx(path) == make_setting(path).n_ctx == make_setting(path).n_ctx_train
    assert make_setting(path).refused is None
    assert "ALiBi" in str(make_setting(path, 4096).refused)
    with pytest.raises(SettingError, match="ALiBi"):
        make_setting(path, 4096, ga_n=8)


def test_what_memory_does_not_hold_is_halved(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path, lengths = model(tmp_path, 8192), (32768, 16384, 8192, 4096)
    need = {n: planning.make_plan(path, n, type_k="F16", type_v="F16").memory[0].n_bytes for n in lengths}
    for n_bytes in (need[32768], need[32768] - 1, need[16384] - 1, need[4096], 1):
        free = FreeMemory(n_bytes=n_bytes, limit="it was said")
        monkeypatch.setattr(planning, "free_memory", lambda free=free: free)
        expected = next((n for n in lengths if need[n] <= n_bytes), 2048)
        assert default_n_ctx(path) == expected
        if n_bytes == need[32768] - 1:
            assert default_n_ctx(path, 2) < default_n_ctx(path, 1)


def arguments(setting: ServerSetting) -> dict[str, str]:
    words = setting.server_arguments("127.0.0.1", 8080)
    return {word: words[i + 1] if i + 1 < len(words) else "" for i, word in enumerate(words) if word.startswith("--")}


def test_the_options_of_the_program(tmp_path: Path) -> None:
    path = model(tmp_path, 512)
    given = arguments(make_setting(path, 1500, n_parallel=3))
    assert given == {
        "--model": str(path), "--ctx-size": "4500", "--parallel": "3", "--no-kv-unified": "--cors-origins",
        "--ga-n": "auto", "--cors-origins": "localhost", "--host": "127.0.0.1", "--port": "8080",
    }  # fmt: skip
    given = arguments(make_setting(path, 1500, ga_n=8, ga_w=32, ga_map="jet-long"))
    assert (given["--ga-n"], given["--ga-w"], given["--ga-map"]) == ("8", "32", "jet-long")


def test_measured_groups_are_handed_on(tmp_path: Path) -> None:
    path = model(tmp_path, 512)
    place = measured.place(fingerprint(path), 64)
    assert place is not None
    place.parent.mkdir(parents=True, exist_ok=True)
    try:
        place.write_text(
            f'{{"format": "pyselfextend-tune", "version": 1, "digest": "{fingerprint(path)}", "ga_w": 64,'
            ' "n_ctx_train": 512, "groups": [[512, 1], [1024, 3]]}'
        )
        setting = make_setting(path, 2048)
        assert setting.groups[:2] == ((512, 1), (1024, 3)) and setting.groups[-1][0] >= 2048
        assert arguments(setting)["--ga-groups"].startswith("512:1,1024:3,")
        assert make_setting(path, 2048, ga_w=32).groups == ()
    finally:
        place.unlink()


@pytest.mark.parametrize(
    ("given", "words"),
    [
        ({"n_ctx": 0}, "n_ctx is 0"),
        ({"n_ctx": "9"}, "n_ctx is '9' of type str"),
        ({"n_parallel": 0}, "n_parallel is 0; it must be an integer from 1 to 256"),
        ({"n_parallel": 257}, "n_parallel is 257"),
        ({"n_parallel": 256, "n_ctx": 2**30}, "n_ctx is 1073741824"),
        ({"ga_n": 0}, "ga_n is 0"),
        ({"ga_w": 512}, "ga_w is 512; it must be below the trained context"),
        ({"ga_map": "linear"}, "linear"),
        ({"n_ctx": 5000, "ga_n": 4}, "n_ctx is 5000, but ga_n=4 and ga_w=64 reach 1856 tokens on this model"),
    ],
)
def test_what_is_not_allowed(tmp_path: Path, given: dict[str, Any], words: str) -> None:
    with pytest.raises(SettingError, match=words.replace("(", r"\(")):
        make_setting(model(tmp_path, 512), **given)


def test_the_plain_model_by_name(tmp_path: Path) -> None:
    path = model(tmp_path, 512)
    assert make_setting(path, 512, ga_n=1).refused is None
    assert "ga_n=1 is the plain model" in str(make_setting(path, 1000, ga_n=1).refused)


def test_what_is_no_model(tmp_path: Path) -> None:
    (tmp_path / "text.gguf").write_text("no model")
    unsupported.make(tmp_path / "mute.gguf", "gemma3")
    for name in ("text.gguf", "missing.gguf", "mute.gguf"):
        with pytest.raises(ModelFileError):
            make_setting(tmp_path / name)

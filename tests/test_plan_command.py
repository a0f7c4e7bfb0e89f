"""``pyselfextend plan``: what it prints, on what it exits with 2, and that no file can make it do anything else."""

from __future__ import annotations

import dataclasses
import json
import random
import re
import subprocess
import sys
import time
import tracemalloc
from pathlib import Path
from typing import Any

import more_models
import psutil
import pytest
import unsupported
from rich.console import Console

from pyselfextend.cache_size import CACHE_TYPES, CacheSize
from pyselfextend.commands import plan as command_plan
from pyselfextend.commands.plan_screen import show, size
from pyselfextend.errors import ModelFileError
from pyselfextend.memory import FreeMemory, free_memory
from pyselfextend.model_info import Layer, ModelInfo, Rope
from pyselfextend.plan import AutoGroup, Memory, Offload, Pair, Plan, Way, make_plan

HERE = Path(__file__).parent


def run(*arguments: object, **environment: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "pyselfextend", "plan", *map(str, arguments)]
    env = {"PATH": "", "COLUMNS": "80"} | environment
    return subprocess.run(command, capture_output=True, text=True, timeout=120, cwd=HERE, env=env, encoding="utf-8")


def printed(plan: Plan, width: int) -> str:
    console = Console(width=width, highlight=False, record=True, file=open("/dev/null", "w"), force_terminal=True)  # noqa: SIM115
    with console.file:
        show(plan, console)
    return console.export_text()


def test_nothing_is_loaded(tiny_model: Path) -> None:
    code = (
        "import sys; from pyselfextend import _native; from pyselfextend.cli import main\n"
        f"try: main(['plan', {str(tiny_model)!r}])\nexcept SystemExit: pass\n"
        "libraries = [path.name for path in _native.loaded_libraries() if _native._STOCK.fullmatch(path.name)]\n"
        "print('llama_cpp' in sys.modules, libraries)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=120, cwd=HERE)
    assert done.stdout.splitlines()[-1] == "False []"


def test_a_real_model(smollm2: Path) -> None:
    done = run(smollm2, "--ctx", 16384, "--type-k", "f16")
    assert (done.returncode, done.stderr) == (0, "")
    text = " ".join(done.stdout.split())
    for part in (
        f"{smollm2} ",
        "architecture llama ",
        "quantization Q4_1 (tensors: 210 Q4_1, 61 F32, 1 Q8_0) ",
        "weights 92.1 MiB, 134.5 million parameters ",
        "trained window 8192 tokens ",
        "layers 30 ",
        "heads 9 of queries, 3 of keys and values, of size 64 ",
        "RoPE base 100000, 64 dimensions, no scaling ",
        "For 16384 tokens ga_n=4, ga_w=1024 is recommended: ",
        "The largest relative position is 4863, 59% of 8192; the pair reaches 29696 tokens.",
        "auto: ga_n=4 for 16384 tokens (plain up to 8192, 2 up to 9898, 4 up to 18773)",
        "│ 1024 │ 4 │ 29696 │ 4863 │ 59% │ < 2/3 │ recommended │",
        "│ 512 │ 3 │ 23550 │ 5803 │ 71% │ not kept │ │",
        "│ F16 │ 360.0 MiB │ 33.8 MiB │ ",
    ):
        assert part in text
    assert "\x1b" not in done.stdout


@pytest.mark.parametrize("width", [80, 120])
def test_tables_fit(tiny_models: dict[str, Path], gemma3: Path, tmp_path: Path, width: int) -> None:
    """Nothing is cut off or broken, also with the longest numbers."""
    long = tmp_path / "model.gguf"
    more_models.make(long, "heads of each layer")
    unsupported.make(tmp_path / "refused.gguf", "gemma4")
    plans = [
        make_plan(gemma3, 2_000_000),
        make_plan(tiny_models["gemma3"], 5000, ga_n=99, ga_w=300),
        make_plan(tiny_models["llama"], 100),
        make_plan(long, 10_000_000),
        make_plan(tmp_path / "refused.gguf"),
        make_plan(gemma3, 2_000_000, n_gpu_layers=-1, n_ubatch=4096),
        make_plan(tiny_models["gemma3"], 5000, n_gpu_layers=3),
        make_plan(tiny_models["llama"], 100, n_gpu_layers=1),
    ]
    for plan in plans:
        text = printed(plan, width)
        for pair in plan.pairs:
            assert re.search(rf"│ +{pair.ga_w} │ +{pair.ga_n} │ +{pair.n_ctx_reach} │ +{pair.pos_rel_max} │", text)
        for memory in plan.memory:
            sizes = [memory.cache.bytes_far]
            sizes += [memory.cache.bytes_near] if plan.pair else []
            sizes += [memory.cache.bytes_swa] if plan.model.windowed else []
            cells = " │ +".join(map(size, [*sizes, memory.n_bytes]))
            assert re.search(rf"│ {memory.cache.type_k} +│ +{cells} │ +{'yes' if memory.holds else 'no'} │", text)
            there = [size(memory.bytes_cache_device)]
            there += [size(n_bytes) for way in memory.ways for n_bytes in (way.bytes_compute, way.n_bytes)]
            cells = " │ +".join(there)
            assert plan.offload is None or re.search(rf"│ {memory.cache.type_k} +│ +{cells} │", text)
        assert "…" not in text
        assert plan.why in " ".join(text.split())


def test_what_it_says_of_layers_that_differ(tmp_path: Path) -> None:
    text = printed(make_plan(more_models.make(tmp_path / "model.gguf", "heads of each layer")), 120)
    assert "2 of queries, 2 of keys and values, of size 16 (layer 0)" in text
    assert "4 of queries, 4 of keys and values, of size 16 (layer 2)" in text
    assert (
        "Not possible: Q8_0, Q5_1, Q5_0, Q4_1, Q4_0, IQ4_NL (keys are stored in blocks of 32, the model's heads" in text
    )


def test_text_of_a_file_does_not_reach_the_terminal(tmp_path: Path, tiny_model: Path) -> None:
    path = tmp_path / "model.gguf"
    path.write_bytes(tiny_model.read_bytes().replace(b"tiny-llama", b"\x1b[31mred\x07\n"))
    done = run(path)
    assert done.returncode == 0
    assert "\x1b" not in done.stdout
    assert r"\x1b[31mred\x07" in done.stdout


def test_a_device(tiny_models: dict[str, Path]) -> None:
    for layers, about in (
        (1, "the output layer, "),
        (3, "layers 2-3 of 4 and the output layer, "),
        (-1, "all 4 layers, "),
    ):
        done = run(tiny_models["gemma3"], "--gpu-layers", layers, "--type-k", "q8_0", "--type-v", "q8_0")
        assert (done.returncode, done.stderr) == (0, "")
        text = " ".join(done.stdout.split())
        assert f"On the device: {about}" in text
        for part in (
            "┃ K, V ┃ cache ┃ computing ┃ in all ┃ computing ┃ in all ┃",
            "of weights, the cache of the layers there, and up to ",
            "says which devices offer the fused attention; it needs flash_attn=True.",
        ):
            assert part in text
    done = run(tiny_models["gemma3"], "--gpu-layers", -1, "--type-k", "f16", "--no-flash-attn")
    assert "says which devices offer the fused attention, with flash_attn=True." in " ".join(done.stdout.split())
    done = run(tiny_models["gemma3"], "--gpu-layers", -1, "--ctx", 100, "--type-k", "f16")
    assert "plain:" in done.stdout
    assert "fused" not in done.stdout


def test_an_output_that_knows_no_unicode(tiny_model: Path) -> None:
    done = run(tiny_model, PYTHONIOENCODING="ascii")
    assert done.returncode == 0
    assert done.stdout.isascii()


def names(kind: type) -> set[str]:
    return {field.name for field in dataclasses.fields(kind)}


def test_json(tiny_models: dict[str, Path]) -> None:
    done = run(tiny_models["gemma3"], "--ctx", 2000, "--ga-n", 9, "--gpu-layers", 2, "--json")
    assert (done.returncode, done.stderr) == (0, "")
    found = json.loads(done.stdout)
    plan = make_plan(tiny_models["gemma3"], 2000, ga_n=9, n_gpu_layers=2)
    for pairs in ([found[key] for key in ("recommended", "asked", "pair")], found["pairs"]):
        assert all(pair.keys() == names(Pair) for pair in pairs)
    assert found["recommended"] == dataclasses.asdict(plan.recommended)  # type: ignore[arg-type]
    assert found["pairs"] == [dataclasses.asdict(pair) for pair in plan.pairs]
    assert found["model"]["layers"] == [dataclasses.asdict(layer) for layer in plan.model.layers]
    assert [memory["cache"]["type_k"] for memory in found["memory"]] == list(CACHE_TYPES)
    assert [memory["cache"]["bytes_swa"] for memory in found["memory"]] == [m.cache.bytes_swa for m in plan.memory]
    assert found["model"]["path"] == str(tiny_models["gemma3"])
    kinds: list[tuple[dict[str, Any], type]] = [
        (found, Plan), (found["free"], FreeMemory),
        (found["model"], ModelInfo), (found["model"]["rope"], Rope), (found["model"]["layers"][0], Layer),
        (found["memory"][0], Memory), (found["memory"][0]["cache"], CacheSize),
        (found["memory"][0]["ways"][0], Way), (found["offload"], Offload),
    ]  # fmt: skip
    for value, kind in kinds:
        assert value.keys() == names(kind)


def test_every_key_is_documented() -> None:
    """In help, and at the field."""
    words = set(re.findall(r"\w+", command_plan.EPILOG))
    for kind in (Plan, ModelInfo, Layer, Pair, AutoGroup, Memory, CacheSize, FreeMemory, Offload, Way):
        assert names(kind) <= words, kind


@pytest.mark.parametrize("words", [(), ("--ga-n", "auto"), ("--ga-n", 9), ("--ga-w", 64)])
def test_what_auto_does(tiny_model: Path, words: tuple[object, ...]) -> None:
    """In one line; of 512 tokens two thirds, less the window, are 277 1/3 for each of a group."""
    for n_tokens, line in (
        (512, "auto: plain up to 512 tokens"),
        (513, "auto: ga_n=2 for 513 tokens (plain up to 512, 2 up to 618)"),
        (1500, "auto: ga_n=8 for 1500 tokens (plain up to 512, 2 up to 618, 4 up to 1173, 8 up to 2282)"),
    ):
        done = run(tiny_model, "--ctx", n_tokens, *words, COLUMNS="120")
        assert (done.returncode, done.stderr) == (0, "")
        assert done.stdout.splitlines().count(f"  {line}") == 1


def test_another_map(tiny_model: Path) -> None:
    text = " ".join(run(tiny_model, "--ctx", 1500, "--ga-map", "lampe").stdout.split())
    assert "ga_map=lampe, ga_n=332, ga_w=64 is recommended: ga_n=332 is the smallest that keeps positions below" in text
    assert "auto: ga_n=332 for 1500 tokens (plain up to 512, 332 up to 1500)" in text
    text = " ".join(run(tiny_model, "--ctx", 1500, "--ga-map", "mrrope").stdout.split())
    assert "ga_map=mrrope, ga_n=3, ga_w=0 is recommended: ga_n=3 is the smallest that reaches." in text
    assert "auto:" not in text


def test_auto_in_json(tiny_model: Path) -> None:
    found = json.loads(run(tiny_model, "--ctx", 600, "--ga-n", "auto", "--json").stdout)
    assert found["auto"] == [{"ga_n": 1, "n_tokens": 512}, {"ga_n": 2, "n_tokens": 618}]
    assert found["asked"] == found["pair"] == found["recommended"]
    assert found["pair"]["ga_n"] == 2


def test_refused(tmp_path: Path) -> None:
    done = run(unsupported.make(tmp_path / "model.gguf", "mamba"))
    assert done.returncode == 0
    assert "it is recurrent and has no KV cache to extend" in " ".join(done.stdout.split())
    assert "its size is not computed" in done.stdout
    assert "auto:" not in done.stdout


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("--ctx", 0), "0 is not at least 1"),
        (("--ctx", "many"), "'many' is not an integer"),
        (("--ga-n", "many"), "'many' is not an integer or auto"),
        (("--gpu-layers", -2), "-2 is not at least -1"),
        (("--ga-w", 512), "ga_w is 512; it must be below the trained context of 512 tokens"),
        (("--type-k", "Q4_K"), "'Q4_K' is not one of"),
        (("--type-v", "Q8_0", "--no-flash-attn"), "values of type Q8_0 need flash attention"),
    ],
)
def test_usage_errors(tiny_model: Path, arguments: tuple[object, ...], message: str) -> None:
    done = run(tiny_model, *arguments)
    assert (done.returncode, done.stdout) == (2, "")
    assert message in done.stderr


def test_bad_files_are_one_line_and_exit_status_2(tmp_path: Path, tiny_model: Path) -> None:
    whole = tiny_model.read_bytes()
    contents = {"empty": b"", "text": b"hello", "header": whole[:5000], "data": whole[:-1], "no": b"GGUF" + bytes(100)}
    for name, content in contents.items():
        (tmp_path / name).write_bytes(content)
    for path in [tmp_path / name for name in (*contents, "missing", ".")]:
        for option in ((), ("--json",)):
            done = run(path, *option)
            assert (done.returncode, done.stdout) == (2, "")
            assert re.fullmatch(r"pyselfextend plan: .+\n", done.stderr), done.stderr
            assert str(path) in done.stderr


#
# damaged files
#


def attempt(path: Path, data: bytes) -> Plan | None:
    """The plan, None after a ModelFileError: no other exception, and neither much memory nor time."""
    path.write_bytes(data)
    started = time.perf_counter()
    tracemalloc.start()
    try:
        return make_plan(path)
    except ModelFileError as error:
        message = str(error)
        assert message.isprintable()
        assert len(message) < len(str(path)) + 300
        return None
    finally:
        assert tracemalloc.get_traced_memory()[1] < 20 * 10**6
        tracemalloc.stop()
        assert time.perf_counter() - started < 5


@pytest.mark.parametrize("name", ["llama", "gemma3"])
def test_truncated_files(tiny_models: dict[str, Path], tmp_path: Path, name: str) -> None:
    """At any length there is an error."""
    whole = tiny_models[name].read_bytes()
    rng = random.Random(1)
    lengths = [*range(64), *rng.sample(range(20_000), 300), *rng.sample(range(len(whole)), 50), len(whole) - 1]
    path = tmp_path / "model.gguf"
    for n in lengths:
        assert attempt(path, whole[:n]) is None, n
    assert attempt(path, whole) is not None


@pytest.mark.parametrize("name", ["llama", "gemma3", "gpt-oss"])
def test_flipped_bytes(tiny_models: dict[str, Path], tmp_path: Path, name: str) -> None:
    """A plan, or an error, for any header in which some bytes are others."""
    whole = tiny_models[name].read_bytes()
    n_header = whole.index(b"token_embd.weight") + 200
    vocabulary = range(whole.index(b"tokenizer.ggml.tokens"), whole.index(b"tokenizer.ggml.bos_token_id"))
    places = [place for place in range(n_header + 2000) if place not in vocabulary]  # all strings there are alike
    places += random.Random(2).sample(vocabulary, 100)
    rng = random.Random(3)
    path = tmp_path / "model.gguf"
    n_plans = 0
    chosen = rng.sample(places, 150)
    for place in chosen:
        data = bytearray(whole)
        for _ in range(rng.choice((1, 1, 4))):
            data[min(place, len(data) - 1)] = rng.choice((0, 1, 0x7F, 0x80, 0xFF, data[place] ^ 1 << rng.randrange(8)))
            place += 1
        plan = attempt(path, bytes(data))
        if plan is not None:
            n_plans += 1
            json.dumps(command_plan.as_dict(plan), default=str, allow_nan=False)
            if n_plans % 10 == 0:
                printed(plan, 80)
    assert 0.05 < n_plans / len(chosen) < 0.95  # both happen


#
# free memory
#


def test_free_memory_of_this_machine() -> None:
    found = free_memory()
    available = psutil.virtual_memory().available
    if found.limit == "machine":
        assert abs(found.n_bytes - available) < 0.1 * available + 2**28
    else:
        assert found.n_bytes < available


V1, V2 = "9:cpu:/a\n4:memory:/group/mine\n0::/other\n", "0::/group/mine\n"


def tree(root: Path, group: str, files: dict[str, str]) -> Path:
    for name, content in ({"proc/self/cgroup": group} | files).items():
        path = root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(content)
    return root


def test_memory_of_a_control_group(tmp_path: Path) -> None:
    """The files as Linux has them, of both versions; the tightest limit of a group and those above it counts."""
    mib = 2**20
    v2 = tree(
        tmp_path / "v2",
        V2,
        {
            "sys/fs/cgroup/group/mine/memory.max": "max\n",
            "sys/fs/cgroup/group/mine/memory.current": f"{5 * mib}\n",
            "sys/fs/cgroup/group/memory.max": f"{30 * mib}\n",
            "sys/fs/cgroup/group/memory.current": f"{12 * mib}\n",
            "sys/fs/cgroup/group/memory.stat": f"anon {8 * mib}\nfile {4 * mib}\ninactive_file {3 * mib}\n",
        },
    )
    assert free_memory(v2) == FreeMemory(21 * mib, "cgroup")
    v1 = tree(
        tmp_path / "v1",
        V1,
        {
            "sys/fs/cgroup/memory/group/mine/memory.limit_in_bytes": f"{20 * mib}\n",
            "sys/fs/cgroup/memory/group/mine/memory.usage_in_bytes": f"{4 * mib}\n",
            "sys/fs/cgroup/memory/memory.limit_in_bytes": "9223372036854771712\n",
            "sys/fs/cgroup/memory/memory.usage_in_bytes": f"{900 * mib}\n",
        },
    )
    assert free_memory(v1) == FreeMemory(16 * mib, "cgroup")
    container = tree(
        tmp_path / "container",  # the name is that outside of it, its own group is at the top
        "0::/docker/0123\n",
        {"sys/fs/cgroup/memory.max": f"{9 * mib}\n", "sys/fs/cgroup/memory.current": f"{10 * mib}\n"},
    )
    assert free_memory(container) == FreeMemory(0, "cgroup")
    assert free_memory(tmp_path / "nothing").limit == "machine"

"""Whatever stdout, stderr, the terminal and the environment are: what is printed can be printed, or a line says why."""

from __future__ import annotations

import os
import re
import shutil
import signal
import stat
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import gguf
import pytest
from pseudo_terminal import run_at_terminal

from pyselfextend.terminal import printable

COMMANDS = [
    ["--version"],
    ["--help"],
    ["plan", "--help"],
    ["eval", "--help"],
    ["eval", "ppl", "--help"],
    ["completion", "zsh"],
    ["doctor"],
    ["doctor", "MODEL", "--json"],
    ["plan", "MODEL", "--ctx", "2000"],
    ["plan", "MODEL", "--json"],
    ["demo", "--model", "MODEL", "--tokens", "600"],
]

#: What a terminal obeys: control characters but tabs and line breaks, and what changes the direction of a text.
OBEYED = re.compile(r"[\x00-\x08\x0b-\x1f\x7f-\x9f\u2028\u2029\u202a-\u202e\u2066-\u2069]")

EVIL = "a\x1b]0;owned\x07\x1b[31m\x9b2J\u202eb\rc"


def run(
    *arguments: str | Path | bytes, model: Path | None = None, cwd: Path | None = None, **options: object
) -> subprocess.CompletedProcess[bytes]:
    """Call the command line; the word MODEL is a model's path. Other options are those of ``subprocess.run``."""
    words = [str(model) if word == "MODEL" else word for word in arguments]
    streams = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE} | options
    return subprocess.run(  # type: ignore[call-overload, no-any-return]
        [sys.executable, "-m", "pyselfextend", *words], timeout=120, cwd=cwd or Path(__file__).parent, **streams
    )


#
# streams
#


@pytest.fixture
def full(tmp_path: Path) -> Path:
    """A device that is full, a node of our own."""
    path = tmp_path / "full"
    try:
        os.mknod(path, 0o666 | stat.S_IFCHR, os.makedev(1, 7))
        with path.open("wb", buffering=0) as file, pytest.raises(OSError, match="No space left"):
            file.write(b"text")
    except (OSError, AttributeError):
        path = Path("/dev/full")
        if not path.exists():
            pytest.skip("needs /dev/full, or to make such a device")
    return path


@pytest.mark.parametrize("unbuffered", ["", "1"])
@pytest.mark.parametrize("arguments", COMMANDS, ids=" ".join)
def test_a_full_disk(tiny_model: Path, full: Path, arguments: list[str], unbuffered: str) -> None:
    with full.open("wb") as stdout:
        done = run(*arguments, model=tiny_model, stdout=stdout, env={**os.environ, "PYTHONUNBUFFERED": unbuffered})
    lines = done.stderr.decode().splitlines()
    assert done.returncode == 2, lines
    assert re.fullmatch(r"pyselfextend[a-z ]*: .*No space left on device", lines[-1])
    assert "Traceback" not in done.stderr.decode()
    if arguments[0] != "demo":  # whose progress is another thing
        assert len(lines) == 1


@pytest.mark.parametrize("arguments", [["plan", "missing.gguf"], ["plan", "--ctx", "0", "x"], ["dance"]], ids=" ".join)
def test_an_error_that_cannot_be_written(full: Path, arguments: list[str]) -> None:
    with full.open("wb") as stderr:
        done = run(*arguments, stderr=stderr)
    assert (done.returncode, done.stdout) == (2, b"")


def test_files_do_not_take_the_places_of_closed_streams(tmp_path: Path) -> None:
    """What libraries print would be written into a file with the descriptor of stderr."""
    code = (
        "import sys; from pyselfextend.cli import main; main(['--version']); sys.exit(open(sys.argv[1], 'w').fileno())"
    )
    command = ["bash", "-c", 'exec "$@" <&- >&- 2>&-', "bash", sys.executable, "-c", code, str(tmp_path / "file")]
    assert subprocess.run(command, timeout=60, cwd=Path(__file__).parent).returncode > 2


@pytest.mark.parametrize("arguments", ["--help", "plan MODEL", "doctor", "plan MODEL --json"])
def test_a_reader_that_wants_one_line(tiny_model: Path, arguments: str) -> None:
    command = f'"{sys.executable}" -m pyselfextend {arguments} | head -1; echo "${{PIPESTATUS[0]}}"'
    done = subprocess.run(
        ["bash", "-c", command.replace("MODEL", str(tiny_model))],
        capture_output=True, timeout=120, cwd=Path(__file__).parent,
    )  # fmt: skip
    assert done.stderr == b""
    first, status = done.stdout.splitlines()
    assert first
    assert int(status) in (0, 1, 128 + signal.SIGPIPE)  # a short text may be written before it is gone; doctor has 1


#
# widths
#


def without_free(output: bytes) -> list[bytes]:
    """The lines that are the same a moment later."""
    return [line for line in output.splitlines() if not line.startswith(b"Free: ")]


@pytest.mark.parametrize("name", ["COLUMNS", "LINES"])
@pytest.mark.parametrize("value", ["0", "-5", "wide", "", "²", "1e3", "9" * 30])
@pytest.mark.parametrize("arguments", [["plan", "MODEL"], ["demo", "--help"]], ids=" ".join)
def test_a_width_that_is_none_counts_as_not_set(tiny_model: Path, arguments: list[str], name: str, value: str) -> None:
    environment = {key: text for key, text in os.environ.items() if key not in ("COLUMNS", "LINES")}
    expected = run(*arguments, model=tiny_model, env=environment)
    assert expected.returncode == 0
    assert expected.stdout.count(b"\n") > 15
    assert max(len(line) for line in expected.stdout.decode().splitlines()[1:]) <= 80
    done = run(*arguments, model=tiny_model, env={**environment, name: value})
    assert (done.returncode, without_free(done.stdout), done.stderr) == (0, without_free(expected.stdout), b"")


@pytest.mark.parametrize("columns", [1, 5, 20, 300, 9999])
def test_other_widths_are_obeyed(tiny_model: Path, columns: int) -> None:
    done = run("plan", "MODEL", model=tiny_model, env={**os.environ, "COLUMNS": str(columns)})
    assert (done.returncode, done.stderr) == (0, b"")
    assert max(len(line) for line in done.stdout.decode().splitlines()[1:]) <= columns


#
# what a terminal would obey
#


def test_what_a_terminal_would_obey_is_shown() -> None:
    assert printable("a\x1b[2J\r\tb\n\u00e9") == "a\\x1b[2J\\r\\tb\n\u00e9"
    assert printable("a\nb", lines=False) == "a\\nb"
    assert printable("\x9b \u202e \u2028 \udcff \ud800") == "\\x9b \\u202e \\u2028 \\xff \\ud800"
    text = "Grüße 日本語　全角 한국어 e\u0301 👩\u200d🚀 क्\u200cष 1\u00a0000"
    assert printable(text) == text


def metadata(path: Path, source: Path, **texts: str) -> Path:
    """A copy of a model with other texts in its metadata."""
    reader = gguf.GGUFReader(source)
    writer = gguf.GGUFWriter(path, str(reader.get_field("general.architecture").contents()))  # type: ignore[union-attr]
    for field in reader.fields.values():
        if field.name.startswith("GGUF.") or field.name == "general.architecture" or field.name in texts:
            continue
        inner = field.types[-1] if field.types[0] == gguf.GGUFValueType.ARRAY else None
        writer.add_key_value(field.name, field.contents(), field.types[0], inner)
    for name, text in texts.items():
        writer.add_string(name, text)
    for tensor in reader.tensors:
        writer.add_tensor(tensor.name, tensor.data, raw_dtype=tensor.tensor_type)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path


@pytest.fixture(scope="module")
def evil(tiny_model: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A model whose name, in its metadata and in its folder, is one that a terminal would obey."""
    folder = tmp_path_factory.mktemp("evil")
    texts = {"general.name": EVIL, "tokenizer.chat_template": "{% x" + EVIL, "general.basename": EVIL}
    path = metadata(folder / "plain.gguf", tiny_model, **texts)
    return path.rename(folder / f"{EVIL}.gguf")


def at_a_terminal(*arguments: str | Path) -> tuple[int, str]:
    """Exit status and what a terminal is sent."""
    return run_at_terminal([sys.executable, "-m", "pyselfextend", *arguments], TERM="xterm-256color", COLUMNS="200")


#: What rich sends by itself: colours, the cursor shown and hidden, lines that are taken away.
OWN = re.compile(r"\x1b\[(\d+(;\d+)*)?m|\x1b\[\?25[lh]|\x1b\[[12]K|\x1b\[1A|\r")


def calls(path: Path, out: Path) -> Iterator[list[str | Path]]:
    """A call of each command with a file; errors as well."""
    missing = path.with_name(f"missing {path.name}")
    yield ["plan", path]
    yield ["doctor", path]
    yield ["demo", "--model", path, "--tokens", "600", "--threads", "1"]
    yield ["bench", path, "--no-stock", "--no-pairs", "--depths", "0", "--prefill", "8", "--decode", "1",
           "--rounds", "1", "--threads", "1", "--plot", out / f"{EVIL}.png",
           "--json", out / f"{EVIL}.json"]  # fmt: skip
    yield ["eval", "passkey", path, "--lengths", "400", "--depths", "0", "--digits", "5", "--setting", "plain",
           "--threads", "1", "--out", out / EVIL]  # fmt: skip
    yield ["eval", "report", out / EVIL / "results.jsonl", "--out", out / f"{EVIL} again"]
    yield ["tune", path, "--lengths", "400", "--groups", "2", "--keys", "1", "--threads", "1",
           "--output", out / f"{EVIL} tuned.json", "--plot", out / f"{EVIL} tuned.png"]  # fmt: skip
    for words in (
        ["plan"],
        ["doctor"],
        ["demo", "--model"],
        ["bench"],
        ["tune"],
        ["eval", "passkey"],
        ["eval", "report"],
    ):
        yield [*words, missing]
    yield ["bench", path, "--json", out / "nowhere" / f"{EVIL}.json"]
    yield ["bench", path, "--no-stock", "--plot", out / f"{EVIL}.x\x1b[2J"]
    yield ["eval", "niah", path, "--text", missing]
    yield ["eval", "longbench", path, "--data", missing]
    yield ["eval", "leval", path, "--data", out, "--datasets", EVIL]
    yield ["bench", path, "--no-stock", "--cache", EVIL]
    yield ["eval", "ppl", path, "--setting", EVIL]
    yield [EVIL]
    yield ["plan", path, f"--{EVIL}"]
    yield ["plan", path, EVIL]
    yield ["plan", path, "--type-k", EVIL]
    yield ["plan", path, "--ctx", EVIL]


def test_names_and_metadata_are_not_obeyed(evil: Path, tmp_path: Path) -> None:
    shown = 0
    for words in calls(evil, tmp_path):
        status, text = at_a_terminal(*words)
        assert status in (0, 1, 2), (words, text)
        assert not OBEYED.search(OWN.sub("", text.replace("\r\n", "\n"))), (words, text)
        assert "\x1b[31m\u009b" not in text and "\x1b[31m\x1b" not in text
        shown += "\\x1b]0;owned\\x07\\x1b[31m\\x9b2J\\u202eb\\rc" in text
    assert shown > 10


@pytest.mark.parametrize("environment", [{}, {"PYTHONIOENCODING": "ascii"}], ids=str)
def test_names_that_are_no_text(tiny_model: Path, tmp_path: Path, environment: dict[str, str]) -> None:
    path = os.fsencode(tmp_path) + b"/m\xff\xc3\xa9\x80.gguf"
    try:
        shutil.copy(tiny_model, path)
    except OSError:
        pytest.skip("this file system takes text alone")
    for words in calls(Path(os.fsdecode(path)), tmp_path / "out"):
        done = run(*words, env={**os.environ, **environment})
        text = (done.stdout + done.stderr).decode()
        assert "Traceback" not in text, (words, text)
        assert done.returncode in (0, 1, 2), (words, text)
        if words[0] == "plan" and len(words) == 2 and done.returncode == 0:
            assert text.splitlines()[0].endswith(r"m\xff\xe9\x80.gguf" if environment.get("PYTHONIOENCODING") else
                                                 "m\\xffé\\x80.gguf")  # fmt: skip


#
# the environment
#


#: Some variables at once, where they do not meet each other.
ENVIRONMENTS: list[dict[str, str | None]] = [
    {"HOME": None, "TERM": None, "PYTHONIOENCODING": "ascii", "OMP_NUM_THREADS": "nonsense"},
    {"HOME": "", "TERM": "dumb", "FORCE_COLOR": "1", "LANG": "C", "LC_ALL": "C", "OMP_NUM_THREADS": "-3"},
    {"HOME": "/proc/1", "TERM": "nonsense\x1b", "NO_COLOR": "1", "LC_ALL": "xx_YY.nonsense", "PATH": ""},
    {name: "/proc/1/x" for name in ("XDG_CACHE_HOME", "XDG_CONFIG_HOME", "XDG_DATA_HOME", "MPLCONFIGDIR", "HOME")},
    {"PYTHONUTF8": "0", "LC_ALL": "POSIX", "PYTHONCOERCECLOCALE": "0", "TMPDIR": "/nowhere"},
    {"PYSELFEXTEND_CACHE_DIR": "/proc/1/x", "_PYSELFEXTEND_COMPLETE": "", "LLAMA_CPP_LIB_PATH": "/nowhere"},
    {"PYSELFEXTEND_ATTN": "nonsense"},
    {"PYSELFEXTEND_DATA_DIR": "/proc/1/x"},
    {name: None for name in ("PYSELFEXTEND_DATA_DIR", "XDG_DATA_HOME", "HOME")},
]


@pytest.mark.parametrize("environment", ENVIRONMENTS, ids=str)
def test_environments(tiny_model: Path, tmp_path: Path, environment: dict[str, str | None]) -> None:
    given = {name: value for name, value in {**os.environ, **environment}.items() if value is not None}
    for words, statuses in [
        (["--help"], {0}),
        (["plan", tiny_model], {0}),
        (["doctor", tiny_model], {0, 1}),
        (["eval", "passkey", tiny_model, "--lengths", "400", "--depths", "0", "--digits", "5", "--setting", "plain",
          "--threads", "1", "--out", tmp_path / "out"], {0}),
        (["bench", tiny_model, "--no-stock", "--no-pairs", "--depths", "0", "--prefill", "8", "--decode", "1",
          "--rounds", "1", "--threads", "1"], {0, 2}),
        (["tune", tiny_model, "--lengths", "400", "--groups", "2", "--keys", "1", "--threads", "1"], {0, 2}),
    ]:  # fmt: skip
        done = run(*words, env=given)
        text = (done.stdout + done.stderr).decode(errors="replace")
        assert done.returncode in statuses, (words, text)
        assert "Traceback" not in text, (words, text)
        assert done.returncode != 2 or text.count("\n") == 1, (words, text)


def test_a_cache_folder_that_cannot_be_made(tiny_model: Path) -> None:
    words = ["bench", tiny_model, "--no-plain", "--no-pairs", "--depths", "0"]
    done = run(*words, env={**os.environ, "PYSELFEXTEND_CACHE_DIR": "/proc/1/x"})
    assert (done.returncode, done.stdout) == (2, b"")
    assert re.fullmatch(rb"pyselfextend bench: the stock build in /proc/1/x/stock failed: .*\n", done.stderr)


GONE = """
import os, sys
os.chdir(sys.argv[1])
os.rmdir(sys.argv[1])
os.execv(sys.executable, [sys.executable, "-m", "pyselfextend", *sys.argv[2:]])
"""


def test_a_folder_that_is_gone(tiny_model: Path, tmp_path: Path) -> None:
    gone = tmp_path / "gone"
    for words, statuses in (
        (["--help"], {0}),
        (["plan", str(tiny_model)], {0}),
        (["plan", "model.gguf"], {2}),
        (["doctor"], {0, 1}),
        (["eval", "passkey", str(tiny_model), "--lengths", "400", "--depths", "0"], {2}),
        (["bench", str(tiny_model), "--no-stock", "--json", "x.json"], {2}),
        (["bench", "model.gguf"], {2}),
    ):
        gone.mkdir()
        done = subprocess.run([sys.executable, "-c", GONE, str(gone), *words], capture_output=True, timeout=120)
        text = (done.stdout + done.stderr).decode()
        assert done.returncode in statuses, (words, text)
        assert "Traceback" not in text, (words, text)

"""Files that the user names: whole or as before, through links, and into devices and FIFOs."""

from __future__ import annotations

import errno
import os
import shutil
import signal
import stat
import subprocess
import sys
import threading
from collections.abc import Callable
from pathlib import Path

import pytest

from pyselfextend.cli import main
from pyselfextend.output_file import check_output, is_stream, write_output

CONTENT = b"new " * 50_000


def names(folder: Path) -> set[str]:
    return {path.name for path in folder.iterdir()}


def test_a_new_file_and_an_old_one(tmp_path: Path) -> None:
    path = tmp_path / ("n" * 251 + ".png")  # the longest name that a file can have
    for content in (b"old", CONTENT, b""):
        check_output(path)
        write_output(path, content)
        assert path.read_bytes() == content
        assert names(tmp_path) == {path.name}


def test_modes(tmp_path: Path) -> None:
    """A new file's is what the process gives its files, an old one keeps its own."""
    path, usual = tmp_path / "file", tmp_path / "usual"
    usual.write_bytes(b"")
    write_output(path, b"new")
    assert path.stat().st_mode == usual.stat().st_mode
    path.chmod(0o640)
    write_output(path, b"newer")
    assert stat.S_IMODE(path.stat().st_mode) == 0o640


def test_links_are_written_through(tmp_path: Path) -> None:
    (tmp_path / "there").mkdir()
    target, link, other = tmp_path / "there" / "file", tmp_path / "link", tmp_path / "there" / "other"
    link.symlink_to("there/other")
    other.symlink_to("file")  # which does not exist yet
    for content in (b"new", b"newer"):
        check_output(link)
        write_output(link, content)
        assert link.is_symlink() and other.is_symlink() and not target.is_symlink()
        assert target.read_bytes() == content
        assert names(tmp_path / "there") == {"file", "other"}


def test_what_cannot_be_written(tmp_path: Path) -> None:
    (tmp_path / "file").write_bytes(b"old")
    (tmp_path / "loop").symlink_to("loop")
    (tmp_path / "dangling").symlink_to("nowhere/file")
    for name in ("", "loop", "dangling", "nowhere/file", "file/file", "n" * 256):
        with pytest.raises(OSError):
            check_output(tmp_path / name)
            write_output(tmp_path / name, CONTENT)
    assert names(tmp_path) == {"file", "loop", "dangling"}
    assert (tmp_path / "file").read_bytes() == b"old"


def read_later(path: Path) -> Callable[[], bytes]:
    """Read a FIFO in a thread."""
    found: list[bytes] = []
    thread = threading.Thread(target=lambda: found.append(path.read_bytes()), daemon=True)
    thread.start()

    def result() -> bytes:
        thread.join(30)
        return found[0]

    return result


def test_a_fifo(tmp_path: Path) -> None:
    path, link = tmp_path / "fifo", tmp_path / "link"
    os.mkfifo(path)
    link.symlink_to("fifo")
    for name in (path, link):
        assert is_stream(name)
        check_output(name)
        result = read_later(path)
        write_output(name, CONTENT)
        assert result() == CONTENT
    assert stat.S_ISFIFO(path.lstat().st_mode) and link.is_symlink()
    assert names(tmp_path) == {"fifo", "link"}


def device(path: Path, minor: int) -> Path:
    """A memory device, by its number: 3 takes all, 7 is full."""
    try:
        os.mknod(path, 0o666 | stat.S_IFCHR, os.makedev(1, minor))
        path.open("wb").close()
    except OSError:
        pytest.skip("devices cannot be made here")
    return path


def test_devices(tmp_path: Path) -> None:
    null, full = device(tmp_path / "null", 3), device(tmp_path / "full", 7)
    for path in (null, full):
        check_output(path)
        assert is_stream(path)
    write_output(null, CONTENT)
    with pytest.raises(OSError, match="No space left on device"):
        write_output(full, CONTENT)
    assert stat.S_ISCHR(null.lstat().st_mode) and stat.S_ISCHR(full.lstat().st_mode)
    assert names(tmp_path) == {"null", "full"}


LIMITED = """
import resource, signal, sys
from pathlib import Path
from pyselfextend.output_file import write_output

signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
resource.setrlimit(resource.RLIMIT_FSIZE, (70_000, 70_000))
try:
    write_output(Path(sys.argv[1]), b"new " * 50_000)
except OSError as error:
    sys.exit(error.errno)
"""

KILLED = """
import os, signal, sys, threading
from pathlib import Path
from pyselfextend import output_file

signal.signal(signal.SIGINT, signal.default_int_handler)
output_file.os.fsync = lambda number: os.kill(os.getpid(), signal.SIGINT)
output_file.write_output(Path(sys.argv[1]), b"new")
"""


@pytest.mark.parametrize("old", [None, b"old"])
@pytest.mark.parametrize(
    ("code", "status"), [(LIMITED, errno.EFBIG), (KILLED, -signal.SIGINT)], ids=["no more room", "interrupted"]
)
def test_what_fails_midway_leaves_all_as_it_was(tmp_path: Path, old: bytes | None, code: str, status: int) -> None:
    path = tmp_path / "file"
    if old is not None:
        path.write_bytes(old)
    done = subprocess.run([sys.executable, "-c", code, str(path)], capture_output=True, timeout=60)
    assert done.returncode == status, done.stderr
    assert names(tmp_path) == ({"file"} if old is not None else set())
    assert old is None or path.read_bytes() == old


#
# the commands that write files
#


BENCH = ["--no-stock", "--no-pairs", "--depths", "0,64", "--prefill", "8", "--decode", "1", "--rounds", "1",
         "--threads", "1"]  # fmt: skip


def test_bench_writes_into_what_is_there(tiny_model: Path, tmp_path: Path) -> None:
    from pyselfextend.bench import Results

    link, target, fifo = tmp_path / "link.json", tmp_path / "target.json", tmp_path / "plot.png"
    link.symlink_to("target.json")
    os.mkfifo(fifo)
    plot = read_later(fifo)
    assert main(["bench", str(tiny_model), *BENCH, "--json", str(link), "--plot", str(fifo)]) == 0
    assert link.is_symlink() and fifo.is_fifo()
    assert Results.from_json(target.read_text()).plan.depths == (0, 64)
    assert plot().startswith(b"\x89PNG")
    assert names(tmp_path) == {"link.json", "target.json", "plot.png"}


def test_bench_writes_one_document_into_a_fifo(tiny_model: Path, tmp_path: Path) -> None:
    from pyselfextend.bench import Results

    fifo = tmp_path / "fifo"
    os.mkfifo(fifo)
    document = read_later(fifo)
    assert main(["bench", str(tiny_model), *BENCH, "--json", str(fifo)]) == 0
    assert Results.from_json(document().decode()).plan.depths == (0, 64)


def test_bench_into_a_full_device(tiny_model: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """The tables are printed all the same; and where they cannot be, results are written all the same."""
    from pyselfextend.bench import Results

    full = device(tmp_path / "full", 7)
    assert main(["bench", str(tiny_model), *BENCH, "--json", str(full)]) == 2
    printed = capsys.readouterr()
    assert "Decode, 1 tokens" in printed.out
    fifo = tmp_path / "fifo"
    os.mkfifo(fifo)
    document = read_later(fifo)
    words = [sys.executable, "-m", "pyselfextend", "bench", str(tiny_model), *BENCH, "--json", str(fifo)]
    with full.open("wb") as stdout:
        assert subprocess.run(words, stdout=stdout, timeout=60, cwd=Path(__file__).parent).returncode == 2
    assert len(Results.from_json(document().decode()).records) > 2
    last = printed.err.splitlines()[-1]
    assert last == f"pyselfextend bench: the results cannot be written to {full}: No space left on device"


@pytest.mark.parametrize("option", ["--json", "--plot"])
def test_bench_refuses_at_once_what_it_cannot_write(
    tiny_model: Path, tmp_path: Path, option: str, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "folder.png").mkdir()
    (tmp_path / "loop.png").symlink_to("loop.png")
    (tmp_path / "file").write_text("")
    for name in ("folder.png", "loop.png", "nowhere/x.png", "file/x.png", "n" * 252 + ".png"):
        assert main(["bench", str(tiny_model), *BENCH, option, str(tmp_path / name)]) == 2
        assert " cannot be written: " in capsys.readouterr().err.splitlines()[-1]


def test_bench_does_not_replace_what_its_tables_go_into(tiny_model: Path, tmp_path: Path) -> None:
    path = tmp_path / "tables"
    words = [sys.executable, "-m", "pyselfextend", "bench", str(tiny_model), *BENCH, "--json"]
    for name in ("/dev/stdout", str(path)):
        with path.open("wb") as stdout:
            done = subprocess.run([*words, name], stdout=stdout, stderr=subprocess.PIPE, timeout=60, cwd=tmp_path)
        assert done.returncode == 2
        assert f"{name} cannot be written: it is what the tables are printed into" in done.stderr.decode()


def test_bench_does_not_replace_the_model(tiny_model: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    model, link = Path(shutil.copy(tiny_model, tmp_path)), tmp_path / "link.png"
    link.symlink_to(model)
    for option, path in (("--json", model), ("--json", link), ("--plot", link)):
        assert main(["bench", str(model), *BENCH, option, str(path)]) == 2
        assert capsys.readouterr().err.endswith(
            f"{path} is the model, and results would replace it; give another file\n"
        )
    assert model.read_bytes() == tiny_model.read_bytes()


def test_results_need_a_file(tiny_model: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """They are read again and added to."""
    words = ["eval", "passkey", str(tiny_model), "--lengths", "400", "--depths", "0", "--digits", "5",
             "--setting", "plain", "--threads", "1", "--no-report", "--out"]  # fmt: skip
    fifo = tmp_path / "fifo" / "results.jsonl"
    fifo.parent.mkdir()
    os.mkfifo(fifo)
    assert main([*words, str(fifo.parent)]) == 2
    assert f"{fifo} is no regular file" in capsys.readouterr().err
    assert fifo.is_fifo()

    link = tmp_path / "link" / "results.jsonl"
    link.parent.mkdir()
    link.symlink_to("../target.jsonl")
    assert main([*words, str(link.parent)]) == 0
    assert link.is_symlink()
    assert (tmp_path / "target.jsonl").read_bytes().count(b"\n") == 2

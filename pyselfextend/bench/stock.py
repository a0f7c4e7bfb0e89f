"""The stock build: llama.cpp from the same pinned source without our patches, otherwise built as our library was.

It is built once, into the cache folder, for each source, set of options, compiler and processor. A build is made beside
its place and moved there when it is whole; a lock keeps two processes from building the same. Everything that a build
needs was installed with the package: the pin, the scripts that fetch and unpack, a CMake project, and the record of our
own build's options.
"""

from __future__ import annotations

import contextlib
import hashlib
import itertools
import json
import os
import platform
import re
import shutil
import subprocess
import sys
import sysconfig
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import psutil

from .. import _native
from .._extras import need
from ..errors import BenchError, MissingExtraError, NativeLibraryError

__all__ = ["OnBuild", "build_options", "cache_dir", "lib_file", "native_dir", "stock_lib"]

#: Called with what is being done, and how many of how many files are compiled (0 of 0: not known yet).
OnBuild = Callable[[str, int, int], None]

INSTEAD = "name an existing build with --stock DIR, or leave it out with --no-stock"

#: How Ninja says how far it is; it is told to by NINJA_STATUS.
PROGRESS = re.compile(r"^\[(\d+)/(\d+)\] ")

LOCK_POLL = 0.2  # seconds between looks at a lock that another process holds


def native_dir() -> Path:
    """The folder of what was installed for the stock build."""
    folder = _native.lib_dir().parent / "native"
    if not (folder / "build-options.json").is_file():
        raise NativeLibraryError(f"{folder} does not hold what the stock build needs; {_native.REINSTALL}")
    return folder


def build_options() -> dict[str, Any]:
    """How our library was configured: ``options`` (CMake's cache entries), ``compilers``, ``cpu_flags``."""
    record: dict[str, Any] = json.loads((native_dir() / "build-options.json").read_text(encoding="utf-8"))
    return record


def cache_dir() -> Path:
    """Where downloads and builds are kept; the same folder as in fetch.cmake."""
    for variable, below in (
        ("PYSELFEXTEND_CACHE_DIR", ""),
        ("XDG_CACHE_HOME", "pyselfextend"),
        ("LOCALAPPDATA", "pyselfextend/cache"),
        ("HOME", ".cache/pyselfextend"),
    ):
        if os.environ.get(variable):
            return Path(os.environ[variable], below)
    raise BenchError("there is no cache folder: set PYSELFEXTEND_CACHE_DIR")


def lib_file(folder: Path) -> Path:
    """The libllama in a folder.

    Raises:
        BenchError: there is none.
    """
    for name in ("libllama.so", "libllama.dylib", "llama.dll", "libllama.dll"):
        if (folder / name).is_file():
            return folder / name
    raise BenchError(f"there is no libllama in {folder}; give the folder that holds one")


def stock_lib(on_build: OnBuild | None = None) -> Path:
    """The folder of the stock libllama; it is built if the cache does not hold it.

    Raises:
        MissingExtraError: CMake or Ninja is missing.
        BenchError: the source cannot be downloaded, or the build fails. The message names the log.
    """
    options = _usable_options(build_options()["options"])
    key = _key(options)
    place = cache_dir() / "stock" / key
    if _is_whole(place):
        return place / "lib"
    on_build = on_build or (lambda what, n, n_all: None)
    cmake, ninja, filelock = _tool("cmake"), _tool("ninja"), need("filelock", "bench")
    try:
        place.parent.mkdir(parents=True, exist_ok=True)
        with _lock(filelock, place.with_suffix(".lock"), on_build):
            if not _is_whole(place):  # another process may have built it meanwhile
                _build(place, options, cmake, ninja, on_build)
    except OSError as error:
        raise BenchError(f"the stock build in {place.parent} failed: {error}") from error
    return place / "lib"


def _is_whole(place: Path) -> bool:
    return (place / "build.json").is_file()


@contextlib.contextmanager
def _lock(filelock: Any, path: Path, on_build: OnBuild) -> Iterator[None]:
    """Held by one process at a time; the system releases it when that ends."""
    lock = filelock.FileLock(path)
    while True:
        try:
            lock.acquire(timeout=LOCK_POLL)
            break
        except filelock.Timeout:
            on_build("waiting for another process that makes the stock build", 0, 0)
    try:
        yield
    finally:
        lock.release()


def _build(place: Path, options: Mapping[str, str], cmake: str, ninja: str, on_build: OnBuild) -> None:
    native, build, log = native_dir(), place.with_suffix(".build"), place.with_suffix(".log")
    shutil.rmtree(build, ignore_errors=True)  # of a process that was killed
    whole = place.with_suffix(".new")
    shutil.rmtree(whole, ignore_errors=True)
    try:
        with log.open("wb") as file:
            on_build("fetching llama.cpp", 0, 0)
            fetch = [f"-DPIN={native / 'LLAMA_CPP_PIN'}", f"-DCACHE_DIR={cache_dir()}", f"-DPYTHON={sys.executable}"]
            archive = _run([cmake, *fetch, "-P", str(native / "cmake/fetch.cmake")], file, log)[-1]

            on_build("configuring the stock build", 0, 0)
            defines = [f"-D{name}={value}" for name, value in options.items()]
            project = ["-S", str(native / "stock"), "-B", str(build), "-G", "Ninja", f"-DCMAKE_MAKE_PROGRAM={ninja}"]
            _run([cmake, *project, f"-DSDIST={archive}", *defines], file, log)

            def on_line(line: str) -> None:
                if found := PROGRESS.match(line):
                    on_build("compiling the stock build", int(found[1]), int(found[2]))

            _run([cmake, "--build", str(build), "--target", "llama"], file, log, on_line)
        shutil.copytree(build / "bin", whole / "lib", symlinks=True)
        lib_file(whole / "lib")
        shutil.copy(build / "compile_commands.json", whole)
        shutil.copy(log, whole / "build.log")
        about = {"source": Path(archive).name, "options": options}
        (whole / "build.json").write_text(json.dumps(about, indent=1) + "\n", encoding="utf-8")
        shutil.rmtree(place, ignore_errors=True)
        whole.rename(place)
        log.unlink()
    finally:
        shutil.rmtree(build, ignore_errors=True)
        shutil.rmtree(whole, ignore_errors=True)


def _run(command: Sequence[str], log: Any, log_path: Path, on_line: Callable[[str], None] | None = None) -> list[str]:
    """Run a step of the build, with its output in the log. Returns the lines; ends it if we are interrupted."""
    log.write(f"$ {' '.join(command)}\n".encode())
    environment = {**os.environ, "NINJA_STATUS": "[%f/%t] "}
    process = subprocess.Popen(
        command,
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        env=environment,
        start_new_session=True,  # Ctrl-C is ours
    )
    assert process.stdout
    lines: list[str] = []
    try:
        for data in process.stdout:
            log.write(data)
            lines.append(data.decode(errors="replace").rstrip())
            if on_line is not None:
                on_line(lines[-1])
        status = process.wait()
    finally:
        if process.poll() is None:
            _kill_all(process)
        process.stdout.close()
    log.flush()
    if status != 0:
        raise BenchError(f"the stock build failed: {_reason(lines)}; its log is {log_path}; {INSTEAD}")
    return [line for line in lines if line]


def _kill_all(process: subprocess.Popen[bytes]) -> None:
    """End a process and all below it: Ninja gives each compiler a process group of its own."""
    parent = psutil.Process(process.pid)
    for each in (parent, *parent.children(recursive=True)):
        with contextlib.suppress(psutil.NoSuchProcess):
            each.kill()
    process.wait()


def _reason(lines: Sequence[str]) -> str:
    """The first error in what a step wrote, as one line."""
    for pattern in ("^CMake Error at", r"\berror:", "FAILED:"):
        for i, line in enumerate(lines):
            if not re.search(pattern, line):
                continue
            if pattern.endswith(":"):
                return line.strip()
            told = itertools.dropwhile(lambda each: not each.strip(), lines[i + 1 :])  # a paragraph that follows
            return " ".join(" ".join(itertools.takewhile(str.strip, told)).split())
    return lines[-1].strip() if lines else "it wrote nothing"


def _usable_options(options: Mapping[str, str]) -> dict[str, str]:
    """Our build's options, without compilers that are not on this machine."""
    usable = dict(options)
    for name in [name for name in options if re.fullmatch("CMAKE_(C|CXX|CUDA|HIP|OBJC)_COMPILER", name)]:
        if not shutil.which(options[name]):
            del usable[name]
    for language, default in (("C", "cc"), ("CXX", "c++")):
        if f"CMAKE_{language}_COMPILER" not in usable:
            variable = {"C": "CC", "CXX": "CXX"}[language]
            found = shutil.which(os.environ.get(variable, default))
            if found is None:
                raise BenchError(f"the stock build needs a {language} compiler, and none was found; {INSTEAD}")
            usable[f"CMAKE_{language}_COMPILER"] = found
    return usable


def _key(options: Mapping[str, str]) -> str:
    """A name for the build of this source, with these options, by these compilers, for this processor."""
    native = native_dir()
    parts = [json.dumps(options, sort_keys=True), platform.machine(), _cpu_features()]
    for file in sorted(path for path in native.rglob("*") if path.is_file() and path.name != "build-options.json"):
        parts.append(f"{file.relative_to(native).as_posix()} {hashlib.sha256(file.read_bytes()).hexdigest()}")
    for language in ("C", "CXX"):
        command = [options[f"CMAKE_{language}_COMPILER"], "--version"]
        parts.append(subprocess.run(command, capture_output=True, text=True, check=False).stdout)
    return hashlib.sha256("\n".join(parts).encode()).hexdigest()[:16]


def _cpu_features() -> str:
    """What -march=native goes by, where the system says it."""
    info = Path("/proc/cpuinfo")
    text = info.read_text(errors="replace") if info.exists() else platform.processor()
    found = re.search(r"^(flags|Features)\s*:.*$", text, re.MULTILINE)
    return found[0] if found else text.partition("\n\n")[0]


def _tool(name: str) -> str:
    found = shutil.which(name, path=sysconfig.get_path("scripts")) or shutil.which(name)
    if found is None:
        raise MissingExtraError(
            f"the stock build needs {name}, which is not installed; "
            f"install it with: pip install 'pyselfextend[bench]', or {INSTEAD}"
        )
    return found

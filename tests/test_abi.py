"""The structs that Python passes to C, field by field, as ctypes lays them out and as the C compiler does."""

from __future__ import annotations

import ctypes
import filecmp
import os
import re
import shutil
import subprocess
from pathlib import Path
from typing import Any

import pytest

from pyselfextend import _native

_native.load()  # llama_cpp with our library

from llama_cpp import llama_cpp as bindings  # noqa: E402

ROOT = Path(__file__).resolve().parent.parent

#: llama_cpp's mirror of this one, which only training uses, lacks its last field.
INCOMPLETE = {"llama_opt_params"}

#: An anonymous union in C: ask the compiler for one of its members instead.
FIELDS = {("llama_model_kv_override", "value"): "val_i64"}


@pytest.fixture(scope="module")
def source() -> Path:
    """The llama.cpp that the library was built from: PYSELFEXTEND_SOURCE, or the latest below build/."""
    if given := os.environ.get("PYSELFEXTEND_SOURCE"):
        return Path(given)
    found = [header.parent.parent for header in ROOT.glob("build/*/llama.cpp/include/llama.h")]
    if not found:
        pytest.fail("there is no llama.cpp below build/: build the package, or name one in PYSELFEXTEND_SOURCE")
    return max(found, key=lambda folder: folder.stat().st_mtime)


def compile_c(source: Path, program: Path, *options: str) -> None:
    """Compile a C program against the headers, with the compiler that CC names or the first that there is."""
    compiler = os.environ.get("CC") or next(filter(None, map(shutil.which, ("cc", "gcc", "clang"))), None)
    assert compiler, "there is no C compiler: name one in CC"
    includes = [f"-I{path}" for path in (ROOT / "native" / "include", source / "include", source / "ggml" / "include")]
    subprocess.run([*compiler.split(), *includes, str(program), *options], check=True)


def compiled_layout(source: Path, folder: Path, structs: dict[str, dict[str, str]]) -> dict[str, tuple[int, int]]:
    """Offset and size of each field, and size of each struct, from a C program that prints them.

    structs: by C type, the C name of each field by the name it is to have in the result.
    """
    lines = []
    for struct, fields in structs.items():
        lines.append(f'printf("{struct} %zu %zu\\n", (size_t) 0, sizeof({struct}));')
        for name, field in fields.items():
            lines.append(
                f'printf("{struct}.{name} %zu %zu\\n", offsetof({struct}, {field}), sizeof((({struct} *) 0)->{field}));'
            )
    program = folder / "layout.c"
    program.write_text(
        '#include "llama-self-extend.h"\n#include <stddef.h>\n#include <stdio.h>\nint main(void) {\n'
        + "\n".join(lines)
        + "\nreturn 0;\n}\n"
    )
    compile_c(source, program, "-o", str(folder / "layout"))
    output = subprocess.run([folder / "layout"], capture_output=True, text=True, check=True).stdout
    rows = (line.rsplit(" ", 2) for line in output.splitlines())
    return {name: (int(offset), int(size)) for name, offset, size in rows}


def python_layout(name: str, struct: type[ctypes.Structure]) -> dict[str, tuple[int, int]]:
    layout = {name: (0, ctypes.sizeof(struct))}
    for field in (row[0] for row in struct._fields_):
        layout[f"{name}.{field}"] = (getattr(struct, field).offset, getattr(struct, field).size)
    return layout


def mirrored() -> dict[str, type[ctypes.Structure]]:
    """llama_cpp's structs by their C type."""
    found = {}
    for name, value in vars(bindings).items():
        is_struct = isinstance(value, type) and issubclass(value, ctypes.Structure)
        if is_struct and value.__module__ == bindings.__name__ and name == value.__name__ and name not in INCOMPLETE:
            found[f"struct {name}"] = value
    return found


def compare(source: Path, folder: Path, structs: dict[str, Any]) -> dict[str, tuple[int, int]]:
    expected: dict[str, tuple[int, int]] = {}
    wanted: dict[str, dict[str, str]] = {}
    for name, struct in structs.items():
        expected |= python_layout(name, struct)
        short = name.removeprefix("struct ")
        wanted[name] = {row[0]: FIELDS.get((short, row[0]), row[0]) for row in struct._fields_}
    found = compiled_layout(source, folder, wanted)
    for short, field in FIELDS:  # a whole union was asked for by one of its members
        name = f"struct {short}.{field}"
        if name in found:
            found[name] = (found[name][0], expected[name][1])
    assert found == expected
    return found


def test_llama_h(source: Path, tmp_path: Path) -> None:
    structs = mirrored()
    for needed in ("llama_context_params", "llama_model_params", "llama_batch", "llama_token_data"):
        assert f"struct {needed}" in structs
    assert len(compare(source, tmp_path, structs)) > 100


def test_llama_self_extend_h(source: Path, tmp_path: Path) -> None:
    kinds = (_native.Params, _native.Info, _native.Layer, _native.Memory)
    compare(source, tmp_path, {f"struct llama_self_extend_{kind.__name__.lower()}": kind for kind in kinds})


def test_llama_self_extend_h_constants(source: Path, tmp_path: Path) -> None:
    names = {f"LLAMA_SELF_EXTEND_ATTN_{name.upper()}": value for name, value in _native.ATTN.items()}
    names["LLAMA_SELF_EXTEND_GA_W_DEFAULT"] = _native.GA_W_DEFAULT
    checks = "\n".join(f'_Static_assert({name} == {value}u, "{name}");' for name, value in names.items())
    layers = re.search(r"^#define LLAMA_MAX_LAYERS +(\d+)$", (source / "src" / "llama-hparams.h").read_text(), re.M)
    assert layers and int(layers[1]) == _native.N_LAYER_MAX
    program = tmp_path / "constants.c"
    program.write_text(f'#include "llama-self-extend.h"\n{checks}\n')
    compile_c(source, program, "-fsyntax-only")


def test_public_header_is_upstreams(source: Path) -> None:
    """The series changes nothing that a program compiled against llama.h could notice."""
    for header in ("include/llama.h", "ggml/include/ggml.h", "ggml/include/ggml-backend.h"):
        assert filecmp.cmp(source / header, source.parent / "llama.cpp-stock" / header, shallow=False)

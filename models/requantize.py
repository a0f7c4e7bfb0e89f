"""Make another quantization of a GGUF model, with llama.cpp's own quantizer.

    python models/requantize.py MODEL.gguf Q4_0 --out MODEL.Q4_0.gguf

A model that is quantized already loses twice: its weights are rounded from what is left of them. That is good enough to
compare how much settings lose, not to publish a model.
"""

from __future__ import annotations

import argparse
import os
import sys
from pathlib import Path

import pyselfextend._native

pyselfextend._native.load()  # before llama_cpp, which it imports with our library

import llama_cpp  # noqa: E402

FILE_TYPES = {
    name.removeprefix("LLAMA_FTYPE_MOSTLY_"): value
    for name, value in vars(llama_cpp).items()
    if name.startswith("LLAMA_FTYPE_MOSTLY_")
}


def requantize(model: Path, file_type: str, out: Path) -> None:
    """Write the model with another type of weights.

    Raises:
        SystemExit: there is no such type or file, or llama.cpp cannot do it.
    """
    if file_type not in FILE_TYPES:
        raise SystemExit(f"{file_type!r} is no type of weights; it must be one of {', '.join(sorted(FILE_TYPES))}")
    if not model.is_file():
        raise SystemExit(f"there is no model file {model}")
    params = llama_cpp.llama_model_quantize_default_params()
    params.ftype = FILE_TYPES[file_type]
    params.allow_requantize = True
    params.nthread = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else 0
    partial = out.with_name(f"{out.name}.partial")
    if llama_cpp.llama_model_quantize(str(model).encode(), str(partial).encode(), params) != 0:
        partial.unlink(missing_ok=True)
        raise SystemExit(f"llama.cpp could not write {model} as {file_type}")
    partial.replace(out)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("model", type=Path, metavar="MODEL")
    parser.add_argument("file_type", metavar="TYPE", help="such as Q4_0 or Q8_0")
    parser.add_argument("--out", type=Path, required=True, metavar="GGUF", help="where to write it")
    args = parser.parse_args()
    requantize(args.model, args.file_type, args.out)
    print(f"{args.out}, {args.out.stat().st_size} bytes", file=sys.stderr)


if __name__ == "__main__":
    main()

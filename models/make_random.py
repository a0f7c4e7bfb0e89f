"""Write a GGUF model of a given shape with random weights, to measure how fast such a model is.

    python models/make_random.py 8b --out 8b.gguf            # Llama 3 8B in Q4_0: 4.5 GB in half a minute
    python models/make_random.py 8b --type F16 --layers 4 --out 8b-4-layers.gguf

What it says is noise; its speed is that of the real one with all matrices in one type, since the shape is what speed
depends on, the size of the vocabulary included. The text of its tokens is that of the tiny models, and placeholders. A
file is the same wherever it is made from a seed. Rows of a matrix repeat after a few hundred, so that a file is made as
fast as the disk takes it, and no more than some megabytes are held at a time.
"""

from __future__ import annotations

import argparse
import signal
import sys
import zlib
from collections.abc import Iterator
from dataclasses import dataclass, replace
from math import prod, sqrt
from pathlib import Path
from typing import Any

import gguf
import numpy as np
from gguf.quants import quantize
from make_tiny import vocabulary

N_CTX_TRAIN = 8192
N_ROWS = 509  # random rows of a matrix before they repeat; a prime, so that matrices of one width begin at others

TYPES = ("Q4_0", "Q8_0", "F16", "F32")


@dataclass(frozen=True)
class Shape:
    """What a model's speed depends on."""

    arch: str
    about: str
    n_layer: int
    n_embd: int
    n_head: int
    n_head_kv: int
    head_size: int
    n_ff: int
    n_vocab: int
    freq_base: float
    tied: bool = True
    n_window: int = 0  # of five layers in six


SHAPES = {
    "135m": Shape("llama", "SmolLM2 135M", 30, 576, 9, 3, 64, 1536, 49152, 1e5),
    "270m": Shape("gemma3", "Gemma 3 270M: five layers in six have a window of 512", 18, 640, 4, 1, 256, 2048, 262144,
                  1e6, n_window=512),
    "1b": Shape("llama", "Llama 3.2 1B", 16, 2048, 32, 8, 64, 8192, 128256, 5e5),
    "1.7b": Shape("qwen3", "Qwen3 1.7B", 28, 2048, 16, 8, 128, 6144, 151936, 1e6),
    "8b": Shape("llama", "Llama 3 8B", 32, 4096, 32, 8, 128, 14336, 128256, 5e5, tied=False),
}  # fmt: skip


def tensors(shape: Shape) -> Iterator[tuple[str, tuple[int, ...], float]]:
    """Name, shape ([n_out, n_in] of a matrix) and size of each tensor: the standard deviation of what a matrix makes of
    unit variance, or the value of a norm's weights.
    """
    n_q, n_kv = shape.n_head * shape.head_size, shape.n_head_kv * shape.head_size
    is_gemma = shape.arch == "gemma3"
    added = 1 / sqrt(2 * shape.n_layer)  # what a layer adds to the residual stream, so that it stays near unit variance
    # Gemma multiplies its embeddings, of unit variance then, by the square root of their length
    yield "token_embd.weight", (shape.n_vocab, shape.n_embd), 1.0 if is_gemma else sqrt(shape.n_embd)
    for il in range(shape.n_layer):
        block = f"blk.{il}"
        yield f"{block}.attn_norm.weight", (shape.n_embd,), 1.0
        for part, n in (("q", n_q), ("k", n_kv), ("v", n_kv)):
            yield f"{block}.attn_{part}.weight", (n, shape.n_embd), 1.0
            if shape.arch in ("gemma3", "qwen3") and part != "v":
                yield f"{block}.attn_{part}_norm.weight", (shape.head_size,), 1.0
        yield f"{block}.attn_output.weight", (shape.n_embd, n_q), added
        yield f"{block}.ffn_norm.weight", (shape.n_embd,), 1.0
        yield f"{block}.ffn_gate.weight", (shape.n_ff, shape.n_embd), 1.0
        yield f"{block}.ffn_up.weight", (shape.n_ff, shape.n_embd), 1.0
        yield f"{block}.ffn_down.weight", (shape.n_embd, shape.n_ff), added
        if is_gemma:
            yield f"{block}.post_attention_norm.weight", (shape.n_embd,), added
            yield f"{block}.post_ffw_norm.weight", (shape.n_embd,), added
    # a tied head meets the token's own embedding in the residual stream
    yield "output_norm.weight", (shape.n_embd,), 1 / sqrt(shape.n_embd) if shape.tied and not is_gemma else 1.0
    if not shape.tied:
        yield "output.weight", (shape.n_vocab, shape.n_embd), 1.0


def kind_of(size: tuple[int, ...], kind: gguf.GGMLQuantizationType) -> gguf.GGMLQuantizationType:
    """The type that a tensor is stored in: norms are F32."""
    return kind if len(size) > 1 else gguf.GGMLQuantizationType.F32


def n_bytes(size: tuple[int, ...], kind: gguf.GGMLQuantizationType) -> int:
    """Bytes of a tensor in a type."""
    n_block, block_bytes = gguf.GGML_QUANT_SIZES[kind]
    return prod(size) // n_block * block_bytes


class Rows:
    """Random rows in a type, as bytes, made once for each width and size."""

    def __init__(self, kind: gguf.GGMLQuantizationType, seed: int) -> None:
        self.kind, self.seed = kind, seed
        self._made: dict[tuple[int, float], bytes] = {}

    def data(self, name: str, n_out: int, n_in: int, std: float) -> Iterator[memoryview]:
        """A matrix, in pieces. Which of the rows comes first depends on its name."""
        if (n_in, std) not in self._made:
            rng = np.random.default_rng([self.seed, n_in])
            rows = rng.normal(0.0, std / sqrt(n_in), (N_ROWS, n_in)).astype(np.float32)
            self._made[n_in, std] = quantize(rows, self.kind).tobytes()
        rows_bytes = memoryview(self._made[n_in, std])
        n_row = len(rows_bytes) // N_ROWS
        n_left = n_out * n_row
        first = zlib.crc32(name.encode()) % N_ROWS * n_row
        while n_left > 0:
            piece = rows_bytes[first : first + n_left]
            yield piece
            n_left -= len(piece)
            first = 0


def add_metadata(w: gguf.GGUFWriter, name: str, shape: Shape, kind: str, n_ctx_train: int) -> None:
    """Everything but the tensors."""
    w.add_name(f"random-{name}")
    w.add_file_type(gguf.LlamaFileType["ALL_F32" if kind == "F32" else f"MOSTLY_{kind}"])
    w.add_context_length(n_ctx_train)
    w.add_embedding_length(shape.n_embd)
    w.add_block_count(shape.n_layer)
    w.add_feed_forward_length(shape.n_ff)
    w.add_head_count(shape.n_head)
    w.add_head_count_kv(shape.n_head_kv)
    w.add_key_length(shape.head_size)
    w.add_value_length(shape.head_size)
    w.add_rope_dimension_count(shape.head_size)
    w.add_rope_freq_base(shape.freq_base)
    w.add_layer_norm_rms_eps(1e-6)
    if shape.n_window:
        w.add_sliding_window(shape.n_window)

    tokens = vocabulary()[: shape.n_vocab]
    tokens += [(f"<{i}>", -1e4, int(gguf.TokenType.UNUSED)) for i in range(len(tokens), shape.n_vocab)]
    w.add_tokenizer_model("llama")
    w.add_tokenizer_pre("default")
    w.add_token_list([text for text, _, _ in tokens])
    w.add_token_scores([score for _, score, _ in tokens])
    w.add_token_types([kind for _, _, kind in tokens])
    w.add_bos_token_id(1)
    w.add_eos_token_id(2)
    w.add_unk_token_id(0)
    w.add_add_bos_token(True)


def make(
    path: Path,
    name: str,
    *,
    kind: str = "Q4_0",
    n_layer: int | None = None,
    n_vocab: int | None = None,
    n_ctx_train: int = N_CTX_TRAIN,
    seed: int = 0,
) -> Path:
    """Write a model of the shape SHAPES[name] to path, whole or not at all.

    Args:
        path: the file.
        name: the preset.
        kind: the type of the matrices, one of TYPES.
        n_layer, n_vocab: instead of the preset's.
        n_ctx_train: the trained context that the file states.
        seed: of the weights.
    """
    shape = SHAPES[name]
    shape = replace(shape, n_layer=n_layer or shape.n_layer, n_vocab=n_vocab or shape.n_vocab)
    matrix_kind = gguf.GGMLQuantizationType[kind]
    partial = path.with_name(f"{path.name}.partial")
    w = gguf.GGUFWriter(partial, shape.arch)
    add_metadata(w, name, shape, kind, n_ctx_train)
    total = 0
    for tensor, size, _ in tensors(shape):
        stored = kind_of(size, matrix_kind)
        w.add_tensor_info(tensor, size, np.dtype(np.float32), n_bytes(size, stored), stored)
        total += n_bytes(size, stored)
    try:
        w.write_header_to_file()
        w.write_kv_data_to_file()
        w.write_ti_data_to_file()
        assert w.fout
        _write_tensors(w, w.fout[0], shape, Rows(matrix_kind, seed), total)
        w.close()
        partial.replace(path)
    finally:
        w.close()
        partial.unlink(missing_ok=True)
    return path


def _write_tensors(w: gguf.GGUFWriter, file: Any, shape: Shape, rows: Rows, total: int) -> None:
    """What GGUFWriter.write_tensor_data does, without a tensor in memory."""
    w.write_padding(file, file.tell())
    done = 0
    for tensor, size, value in tensors(shape):
        n = n_bytes(size, kind_of(size, rows.kind))
        if len(size) == 1:
            file.write(np.full(size, value, dtype=np.float32).tobytes())
        else:
            for piece in rows.data(tensor, *size, value):
                file.write(piece)
        w.write_padding(file, n)
        done += n
        if sys.stderr.isatty():
            sys.stderr.write(f"\r{done / total:4.0%} of {total / 1e9:.2f} GB")
    if sys.stderr.isatty():
        sys.stderr.write("\n")


def _at_least_one(text: str) -> int:
    number = int(text)
    if number < 1:
        raise argparse.ArgumentTypeError("it must be at least 1")
    return number


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__.splitlines()[0],
        formatter_class=argparse.RawDescriptionHelpFormatter,
        epilog="shapes:\n"
        + "\n".join(
            f"  {name:6}{shape.about}: {shape.n_layer} layers of {shape.n_embd}, {shape.n_head} heads of "
            f"{shape.head_size}, {shape.n_head_kv} KV heads"
            for name, shape in SHAPES.items()
        ),
    )
    parser.add_argument("shape", choices=SHAPES, metavar="SHAPE", help="one of those below")
    parser.add_argument("--out", type=Path, required=True, metavar="GGUF", help="where to write it")
    parser.add_argument("--type", choices=TYPES, default="Q4_0", help="of the matrices (%(default)s)")
    parser.add_argument("--layers", type=_at_least_one, metavar="N", help="instead of the shape's")
    parser.add_argument("--vocab", type=_at_least_one, metavar="N", help="tokens, instead of the shape's")
    parser.add_argument("--n-ctx-train", type=_at_least_one, default=N_CTX_TRAIN, metavar="N",
                        help="trained context that the file states (%(default)s)")  # fmt: skip
    parser.add_argument("--seed", type=int, default=0, help="of the weights (%(default)s)")
    args = parser.parse_args()
    if args.vocab is not None and args.vocab < len(vocabulary()):
        parser.error(f"--vocab must be at least {len(vocabulary())}, the tokens that the tokenizer needs")
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))  # no half file is left
    try:
        make(args.out, args.shape, kind=args.type, n_layer=args.layers, n_vocab=args.vocab,
             n_ctx_train=args.n_ctx_train, seed=args.seed)  # fmt: skip
    except OSError as error:
        parser.exit(1, f"{args.out} could not be written: {error.strerror or error}\n")
    except KeyboardInterrupt:
        parser.exit(130, f"interrupted: {args.out} was not written\n")
    print(f"{args.out}, {args.out.stat().st_size} bytes", file=sys.stderr)


if __name__ == "__main__":
    main()

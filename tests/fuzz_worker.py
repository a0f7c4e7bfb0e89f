"""The process that ``fuzz`` starts: makes damaged inputs from seeds, reads them, and says what comes of it."""

from __future__ import annotations

import contextlib
import copy
import json
import os
import resource
import struct
import sys
from pathlib import Path
from typing import Any

import numpy as np

MEMORY = 4 * 2**30  # bytes that an input may add to the address space
UNEXPECTED = "unexpected"

#: Tiny models of different kinds: SPM vocabularies, and with "-bpe" BPE ones.
MODELS = ("llama", "llama-bpe", "gemma3", "phi4-mini", "qwen3moe-bpe", "gpt-oss", "stablelm-bpe", "llama-yarn")

Generator = np.random.Generator


def make_models(folder: Path) -> None:
    """Write the models that are damaged."""
    import architectures

    tiny = architectures.make_tiny()
    for name in MODELS:
        path = folder / f"{name}.gguf"
        tiny.make(path, name.removesuffix("-bpe"))
        if name.endswith("-bpe"):
            path.write_bytes(with_bpe(path.read_bytes()))
    make_adapter(folder / "lora.gguf")


def make_adapter(path: Path, arch: str = "llama", base: str = "blk.0.attn_q.weight", n: int = 128) -> Path:
    """Write a LoRA adapter of rank 4 for a square matrix of n rows of the tiny Llama model."""
    import gguf

    writer = gguf.GGUFWriter(path, arch)
    writer.add_string("general.type", "adapter")
    writer.add_string("adapter.type", "lora")
    writer.add_float32("adapter.lora.alpha", 8.0)
    rng = np.random.default_rng(0)
    for name, shape in (("lora_a", (4, n)), ("lora_b", (n, 4))):
        writer.add_tensor(f"{base}.{name}", rng.standard_normal(shape).astype(np.float32))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path


# -- GGUF, byte by byte

SIZES = {0: 1, 1: 1, 2: 2, 3: 2, 4: 4, 5: 4, 6: 4, 7: 1, 10: 8, 11: 8, 12: 8}  # of a value's type


class Header:
    """Where the fields of a GGUF file lie."""

    def __init__(self, data: bytes) -> None:
        self.data, self.pos = data, 0
        self.fields: list[tuple[int, int]] = []  # position and bytes: numbers, and what is in texts
        self.keys: dict[str, tuple[int, int]] = {}  # from the key's length to the end of its value
        self.end = self._walk()

    def _number(self, n: int) -> int:
        self.fields.append((self.pos, n))
        self.pos += n
        return int.from_bytes(self.data[self.pos - n : self.pos], "little")

    def _text(self) -> str:
        n = self._number(8)
        if n:
            self.fields.append((self.pos, n))
        self.pos += n
        return self.data[self.pos - n : self.pos].decode()

    def _walk(self) -> int:
        self.pos = 4
        self._number(4)
        n_tensors, n_kv = self._number(8), self._number(8)
        for _ in range(n_kv):
            begin = self.pos
            key = self._text()
            self._value(self._number(4))
            self.keys[key] = begin, self.pos
        self.end_of_keys = self.pos
        for _ in range(n_tensors):
            self._text()
            for _ in range(self._number(4)):
                self._number(8)
            self._number(4)
            self._number(8)
        return self.pos

    def _value(self, kind: int) -> None:
        if kind == 9:
            kind, n = self._number(4), self._number(8)
            for _ in range(n):
                self._value(kind)
        elif kind == 8:
            self._text()
        else:
            self._number(SIZES[kind])


def with_bpe(data: bytes) -> bytes:
    """The same model with a BPE vocabulary of as many tokens: bytes as GPT-2 writes them, and merges."""
    import gguf

    header = Header(data)
    begin = header.keys["tokenizer.ggml.tokens"][0]
    n_vocab = struct.unpack_from("<Q", data, begin + 8 + len("tokenizer.ggml.tokens") + 4 + 4)[0]
    visible = [*range(33, 127), *range(161, 173), *range(174, 256)]
    chars = [chr(byte) if byte in visible else chr(256 + i) for i, byte in enumerate(range(256))]
    tokens = list(dict.fromkeys([*chars, "th", "he", "in", "an", "the", "<|endoftext|>"]))
    tokens += [f"<|{i}|>" for i in range(n_vocab - len(tokens))]
    kind = gguf.TokenType
    types = [kind.CONTROL if text.startswith("<|") else kind.NORMAL for text in tokens]

    def text(value: str) -> bytes:
        return struct.pack("<Q", len(value.encode())) + value.encode()

    def strings(key: str, values: list[str]) -> bytes:
        return text(key) + struct.pack("<IIQ", 9, 8, len(values)) + b"".join(map(text, values))

    new = {
        "tokenizer.ggml.model": text("tokenizer.ggml.model") + struct.pack("<I", 8) + text("gpt2"),
        "tokenizer.ggml.pre": text("tokenizer.ggml.pre") + struct.pack("<I", 8) + text("gpt-2"),
        "tokenizer.ggml.tokens": strings("tokenizer.ggml.tokens", tokens),
        "tokenizer.ggml.merges": strings("tokenizer.ggml.merges", ["t h", "h e", "i n", "a n", "th e"]),
        "tokenizer.ggml.token_type": text("tokenizer.ggml.token_type")
        + struct.pack("<IIQ", 9, 5, len(types))
        + np.array(types, np.int32).tobytes(),
    }
    kept = {key: data[a:b] for key, (a, b) in header.keys.items() if key != "tokenizer.ggml.scores"} | new
    n_tensors = struct.unpack_from("<Q", data, 8)[0]
    head = data[:8] + struct.pack("<QQ", n_tensors, len(kept)) + b"".join(kept.values())
    head += data[header.end_of_keys : header.end]
    weights = data[-(-header.end // 32) * 32 :]
    return head + bytes(-len(head) % 32) + weights


# -- damage

INTERESTING = (0, 1, 2, 3, 127, 255, 2**15, 2**31 - 1, 2**31, 2**32 - 1, 2**63 - 1, 2**64 - 1)


def damage_model(data: bytes, rng: Generator) -> bytes:
    """Some fields of the header with other bits, or a piece of the file cut, doubled or left out."""
    header = Header(data)
    out = bytearray(data)
    # those of arrays are many: in half of the cases pick from what is not in a vocabulary
    vocabulary = [(begin, end) for key, (begin, end) in header.keys.items() if "tokens" in key or end - begin > 1000]
    few = [field for field in header.fields if not any(begin + 60 < field[0] < end for begin, end in vocabulary)]
    for _ in range(int(rng.choice([1, 1, 1, 2, 4]))):
        fields = few if rng.random() < 0.6 else header.fields
        pos, n = fields[int(rng.integers(len(fields)))]
        how = rng.random()
        if how < 0.5:
            bit = int(rng.integers(8 * n))
            out[pos + bit // 8] ^= 1 << bit % 8
        elif how < 0.8:
            value = int(INTERESTING[int(rng.integers(len(INTERESTING)))])
            out[pos : pos + min(n, 8)] = value.to_bytes(8, "little")[: min(n, 8)]
        else:
            out[pos : pos + n] = rng.bytes(n)
    return cut(bytes(out), rng, header.end) if rng.random() < 0.15 else bytes(out)


def cut(data: bytes, rng: Generator, n: int) -> bytes:
    """Without its end, or a piece of the first n bytes left out or there twice."""
    begin, size = int(rng.integers(n)), int(rng.integers(1, 64))
    how = int(rng.integers(3))
    return [data[:begin], data[:begin] + data[begin + size :], data[: begin + size] + data[begin:]][how]


def damage(data: bytes, rng: Generator) -> bytes:
    """Bits, bytes or numbers anywhere, more often at the beginning, where the lengths are; or a cut."""
    out = bytearray(data)
    if rng.random() < 0.3:
        return cut(data, rng, len(data))
    for _ in range(int(rng.choice([1, 1, 2, 8]))):
        pos = int(rng.integers(min(256, len(out)) if rng.random() < 0.6 else len(out)))
        if rng.random() < 0.5:
            out[pos] ^= 1 << int(rng.integers(8))
        else:
            n = int(rng.choice([1, 4, 8]))
            value = int(INTERESTING[int(rng.integers(len(INTERESTING)))])
            out[pos : pos + n] = value.to_bytes(8, "little")[:n]
    return bytes(out)


# -- what reads it


class Models:
    """Opens a model, evaluates a token, closes it."""

    def __init__(self, folder: Path) -> None:
        self.data = [(folder / f"{name}.gguf").read_bytes() for name in MODELS]
        self.path = folder / "damaged.gguf"

    def __call__(self, rng: Generator) -> str:
        from pyselfextend import Llama

        self.path.write_bytes(damage_model(self.data[int(rng.integers(len(self.data)))], rng))
        ga_n = int(rng.choice([1, 4]))
        with Llama(
            str(self.path), ga_n=ga_n, n_ctx=64, n_batch=64, n_threads=1, n_threads_batch=1, verbose=False
        ) as llm:
            llm.eval([1])
            llm.tokenize(b"Hello")
            llm.detokenize([1, 2, 3])
        return "opened"


class Adapters:
    """Opens a model with a damaged LoRA adapter, evaluates a token, closes it."""

    def __init__(self, folder: Path) -> None:
        self.model, self.data = folder / "llama.gguf", (folder / "lora.gguf").read_bytes()
        self.path = folder / "damaged.lora"

    def __call__(self, rng: Generator) -> str:
        from pyselfextend import Llama

        self.path.write_bytes(damage_model(self.data, rng))
        with Llama(str(self.model), lora_path=str(self.path), n_ctx=64, n_threads=1, verbose=False) as llm:
            llm.eval([1])
        return "opened"


class States:
    """Loads a saved state; whether it is taken or not, the instance goes on."""

    ga_n = 4

    def __init__(self, folder: Path) -> None:
        from pyselfextend import Llama

        self.models = []
        for name in ("llama", "gemma3", "gpt-oss"):
            options = {"n_ctx": 256, "n_batch": 64, "n_threads": 1, "n_threads_batch": 1, "verbose": False}
            llm = Llama(str(folder / f"{name}.gguf"), ga_n=self.ga_n, swa_full=True, **options)
            llm.eval(list(range(3, 83)))
            self.models.append((llm, llm.save_state()))

    def __call__(self, rng: Generator) -> str:
        llm, state = self.models[int(rng.integers(len(self.models)))]
        data = damage(state.llama_state, rng)
        damaged = copy.copy(state)
        damaged.llama_state, damaged.llama_state_size = data, len(data)
        try:
            llm.load_state(damaged)
            result = "loaded"
        except RuntimeError as error:  # StateError is one, and what llama_cpp raises
            result = type(error).__name__
        assert result != "loaded" or self.ga_n == 1 or data == state.llama_state  # its hash
        llm.eval([5])
        llm.reset()
        return result


class PlainStates(States):
    """The same, of the plain model."""

    ga_n = 1


class Sessions:
    """Loads a session file of a context, or of a sequence, through the low-level functions, and goes on.

    llama.cpp has an assertion there, on the plain model, so the functions are called as a model is loaded.
    """

    ga_n = 4

    def __init__(self, folder: Path) -> None:
        import context

        self.stack = contextlib.ExitStack()
        self.path = folder / "damaged.session"
        self.contexts = []
        for name in ("llama", "gemma3", "gpt-oss"):
            model = self.stack.enter_context(context.open_model(folder / f"{name}.gguf"))
            ctx = self.stack.enter_context(context.Context(model, self.ga_n, 64, n_ctx=256, swa_full=True))
            ctx.logits(range(3, 83))
            for seq in (None, 0):
                ctx.save_file(self.path, range(3, 83), seq)
                self.contexts.append((ctx, seq, self.path.read_bytes()))

    def __call__(self, rng: Generator) -> str:
        ctx, seq, data = self.contexts[int(rng.integers(len(self.contexts)))]
        self.path.write_bytes(damage(data, rng))
        with ctx.library.guarded():
            loaded = ctx.load_file(self.path, seq)
        ctx.decode([(5, ctx.pos_max() + 1, 0)], logits=False)
        ctx.remove(-1, 0)
        return "refused" if loaded is None else "loaded"


class PlainSessions(Sessions):
    """The same, of the plain model."""

    ga_n = 1


class Grammars:
    """Completes a text with a damaged grammar, of those that llama_cpp brings."""

    PIECES = ("{3,}", "{,}", "::=", "root", "ws", *'()[]"*+?|<>.^-', "\n", "\\")

    def __init__(self, folder: Path) -> None:
        from pyselfextend import Llama

        self.llm = Llama(str(folder / "llama.gguf"), n_ctx=256, n_threads=1, verbose=False)

    def __call__(self, rng: Generator) -> str:
        from llama_cpp import LlamaGrammar, llama_grammar

        text = getattr(llama_grammar, str(rng.choice([name for name in dir(llama_grammar) if name.endswith("_GBNF")])))
        for _ in range(int(rng.integers(1, 6))):
            begin, other = (int(i) for i in rng.integers(0, len(text), 2))
            put = str(rng.choice([*self.PIECES, text[other : other + 9]]))
            text = text[:begin] + put + text[begin + int(rng.choice([0, 1, 5])) :]
        grammar = LlamaGrammar.from_string(text)
        self.llm.create_completion("Hello", max_tokens=4, grammar=grammar, seed=int(rng.integers(1000)))
        return "completed"


KINDS: dict[str, Any] = {
    "models": Models,
    "adapters": Adapters,
    "grammars": Grammars,
    "states": States,
    "plain-states": PlainStates,
    "sessions": Sessions,
    "plain-sessions": PlainSessions,
}


def main() -> None:
    kind, folder, start, stop = sys.argv[1], Path(sys.argv[2]), int(sys.argv[3]), int(sys.argv[4])
    read = KINDS[kind](folder)
    import pyselfextend

    pyselfextend.Llama  # noqa: B018  # loads the library before the limit is set
    size = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
    resource.setrlimit(resource.RLIMIT_AS, (size + MEMORY, size + MEMORY))
    out = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)  # what the library prints

    def say(message: str, seed: int, what: str) -> None:
        print(json.dumps([message, seed, what]), file=out, flush=True)

    for seed in range(start, stop):
        say("begun", seed, "")
        try:
            result = read(np.random.default_rng(seed))
        except pyselfextend.SelfExtendError as error:
            result = type(error).__name__
            if "\n" in str(error):
                result = f"{UNEXPECTED} lines of {error}"
        except MemoryError:  # more than the limit was asked for, and refused
            result = "MemoryError"
        except Exception as error:
            result = f"{UNEXPECTED} {type(error).__name__}: {error}"
        say("done", seed, result)


if __name__ == "__main__":
    main()

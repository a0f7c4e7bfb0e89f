"""Reads what a GGUF file says about its model: metadata and the list of tensors, never the weights.

Damaged files are found as llama.cpp finds them (``gguf.cpp``): every length is checked against the file's before it is
used, keys and tensor names are unique, and the tensors lie one after the other, up to the end of the file. The gguf
package reads the same (a test compares the two), but it takes seconds for a vocabulary, and a damaged length can
keep it busy for ever; types and their sizes are the package's.

Format: https://github.com/ggml-org/ggml/blob/master/docs/gguf.md
"""

from __future__ import annotations

import os
import re
import reprlib
import struct
from collections import Counter
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from math import prod
from pathlib import Path
from typing import Any, BinaryIO, NamedTuple, TypeAlias

from gguf import GGML_QUANT_SIZES, GGUFValueType, LlamaFileType

from .errors import ModelFileError

__all__ = ["GGUFFile", "Skipped", "Tensor", "Value", "read", "shown"]

MAGIC = b"GGUF"
VERSIONS = (2, 3)
ALIGNMENT = 32  # of the tensors, where the file names none
N_DIMS_MAX = 4  # GGML_MAX_DIMS
N_NAME_MAX = 63  # bytes of a tensor's name: GGML_MAX_NAME and its end
N_KEY_MAX = 65535  # bytes of a key
TOKENS = "tokenizer.ggml.tokens"
N_STRINGS_MAX = 2**24  # in an array; no vocabulary comes near it

N_TEXT = struct.Struct("<Q")  # before each text
N_BLOCK = 2**18  # bytes of the file that are read at a time

#: Longer values are passed over. No array that describes layers is longer (LLAMA_MAX_LAYERS).
N_ARRAY_READ = 512
N_TEXT_READ = 65536

#: By number: name, elements of a block, bytes of a block; as ggml has them, which is more than the gguf package knows.
TENSOR_TYPES = {
    **{int(kind): (kind.name, *size) for kind, size in GGML_QUANT_SIZES.items()},
    9: ("Q8_1", 32, 36),
    42: ("Q2_0", 64, 18),
}

SCALARS = {
    GGUFValueType.UINT8: "<B",
    GGUFValueType.INT8: "<b",
    GGUFValueType.UINT16: "<H",
    GGUFValueType.INT16: "<h",
    GGUFValueType.UINT32: "<I",
    GGUFValueType.INT32: "<i",
    GGUFValueType.FLOAT32: "<f",
    GGUFValueType.BOOL: "<?",
    GGUFValueType.UINT64: "<Q",
    GGUFValueType.INT64: "<q",
    GGUFValueType.FLOAT64: "<d",
}

#: How llama.cpp names the parts of a split file.
SPLIT_NAME = re.compile(r"(?P<stem>.*)-(?P<no>\d{5})-of-(?P<count>\d{5})\.gguf", re.DOTALL)


class Skipped(NamedTuple):
    """A value that was passed over: ``n`` elements of an array, or bytes of a text."""

    n: int


Scalar: TypeAlias = int | float | bool | str
Value: TypeAlias = Scalar | tuple[Scalar, ...] | Skipped


@dataclass(frozen=True)
class Tensor:
    """A tensor as the file lists it."""

    name: str

    shape: tuple[int, ...]
    """As in ggml: the fastest-running dimension first."""

    type: str
    """ggml's name: F32, Q4_K, ..."""

    n_elements: int

    n_bytes: int
    """Of its data."""


@dataclass(frozen=True)
class GGUFFile:
    """Metadata and tensors of a model: of one file, or of all parts of a split one."""

    path: Path

    parts: tuple[Path, ...]
    """The files; one, if it is not a split model."""

    version: int

    metadata: Mapping[str, Value]
    """Of the first part. Numbers, texts, flags and tuples of numbers; arrays of strings and other long values are
    ``Skipped``."""

    tensors: tuple[Tensor, ...]

    @property
    def n_elements(self) -> int:
        """Number of parameters: elements of all tensors."""
        return sum(tensor.n_elements for tensor in self.tensors)

    @property
    def n_bytes(self) -> int:
        """Size of the weights: the data of all tensors."""
        return sum(tensor.n_bytes for tensor in self.tensors)

    @property
    def quantization(self) -> str:
        """What the file calls its type, such as Q4_K_M; where it does not, the type that most of its bytes have."""
        number = self.metadata.get("general.file_type")
        for kind in LlamaFileType:
            if kind == number:
                return kind.name.removeprefix("MOSTLY_").removeprefix("ALL_")
        n_bytes: Counter[str] = Counter()
        for tensor in self.tensors:
            n_bytes[tensor.type] += tensor.n_bytes
        return f"mostly {n_bytes.most_common(1)[0][0]}"


def shown(value: object) -> str:
    """What a file holds, as messages quote it: one short line."""
    limits = reprlib.Repr()
    limits.maxstring = limits.maxother = 80
    return limits.repr(value)


def read(path: str | os.PathLike[str], *, vocab_only: bool = False) -> GGUFFile:
    """Read metadata and tensor list of a model. The parts of a split model are found beside its first.

    vocab_only: a file without tensors will do, as one that holds a vocabulary alone.

    Raises:
        ModelFileError: it is missing, is no regular file, cannot be read, is not GGUF, or of a version or byte order
            that llama.cpp does not read; it is truncated or damaged; it is a later part of a split model, or a part of
            it is missing; it holds no tensors.
    """
    path = Path(path)
    version, metadata, tensors = _read_part(path)
    parts = [path]
    for part in _other_parts(path, metadata):
        _, other, more = _read_part(part)
        if other.get("split.no") != len(parts):
            raise ModelFileError(f"{part} is not part {len(parts) + 1} of the model that begins with {path}")
        parts.append(part)
        tensors += more
    if not tensors and not vocab_only:
        raise ModelFileError(f"{path} holds no tensors, so it is no model")
    if len({tensor.name for tensor in tensors}) < len(tensors):
        raise ModelFileError(f"{path} is damaged: two of its parts hold the same tensor")
    expected = metadata.get("split.tensors.count", len(tensors))
    if len(parts) > 1 and expected != len(tensors):
        raise ModelFileError(f"{path} and its other parts hold {len(tensors)} tensors instead of {expected}")
    return GGUFFile(path, tuple(parts), version, metadata, tuple(tensors))


def _other_parts(path: Path, metadata: Mapping[str, Value]) -> list[Path]:
    """The files that go with the first part of a split model."""
    count, no = metadata.get("split.count", 0), metadata.get("split.no", 0)
    if not isinstance(count, int) or count < 2:
        return []
    named = SPLIT_NAME.fullmatch(path.name)
    if named is None or int(named["count"]) != count or int(named["no"]) - 1 != no:
        raise ModelFileError(
            f"{path} says that it is one of {count} parts of a model; "
            f"the first must be called NAME-00001-of-{count:05}.gguf, with the others beside it"
        )
    names = [f"{named['stem']}-{i:05}-of-{count:05}.gguf" for i in range(1, count + 1)]
    if no != 0:
        raise ModelFileError(f"{path} is a later part of a split model; give the first, {path.with_name(names[0])}")
    return [path.with_name(name) for name in names[1:]]


def _read_part(path: Path) -> tuple[int, dict[str, Value], list[Tensor]]:
    try:
        if path.is_dir():
            raise ModelFileError(f"{path} is a directory, not a GGUF file")
        if not path.exists():
            raise ModelFileError(f"there is no file {path}")
        if not path.is_file():
            raise ModelFileError(f"{path} is not a regular file")
        with path.open("rb", buffering=2**16) as file:
            return _Parser(file, os.fstat(file.fileno()).st_size).parse()
    except OSError as error:  # also of the questions above, for example if the name is too long
        raise ModelFileError(f"{path} cannot be read: {error.strerror or error}") from error
    except _FileProblem as problem:
        raise ModelFileError(f"{path} {problem}") from None


class _FileProblem(Exception):
    """What is wrong, as the rest of a sentence that begins with the file's name."""


class _Parser:
    """One pass over the header of a file of ``size`` bytes."""

    def __init__(self, file: BinaryIO, size: int) -> None:
        self.file, self.size = file, size
        self.pos = 0

    def parse(self) -> tuple[int, dict[str, Value], list[Tensor]]:
        if self.size == 0:
            raise _FileProblem("is empty")
        if (magic := self.take(min(4, self.size))) != MAGIC:
            raise _FileProblem(f"is not a GGUF file: it begins with {magic!r} instead of {MAGIC!r}")
        version = self.version()
        n_tensors, n_kv = self.number("<Q"), self.number("<Q")
        metadata: dict[str, Value] = {}
        for _ in range(n_kv):
            key = self.text(N_KEY_MAX, "a key")
            if not key or key in metadata:
                raise _FileProblem(f"is damaged: its metadata have {'twice ' if key else ''}the key {shown(key)}")
            metadata[key] = self.value(key)

        alignment = metadata.get("general.alignment", ALIGNMENT)
        if type(alignment) is not int or alignment < 1 or alignment & (alignment - 1):
            raise _FileProblem(f"is damaged: general.alignment is {shown(alignment)}, not a power of two")
        tensors: dict[str, Tensor] = {}
        n_data = 0  # bytes of the data up to here, padded
        for _ in range(n_tensors):
            tensor, offset = self.tensor()
            if tensor.name in tensors:
                raise _FileProblem(f"is damaged: it has the tensor {shown(tensor.name)} twice")
            if offset != n_data:
                raise _FileProblem(
                    f"is damaged: the data of the tensor {shown(tensor.name)} do not follow those before it"
                )
            tensors[tensor.name] = tensor
            end = n_data + tensor.n_bytes
            n_data = _pad(end, alignment)

        needed = _pad(self.pos, alignment) + end if tensors else self.pos
        if needed > self.size:
            raise _FileProblem(f"is truncated: it has {self.size} bytes, its tensors go on up to byte {needed}")
        return version, metadata, list(tensors.values())

    def version(self) -> int:
        version: int = self.number("<I")
        if version and version & 0xFFFF == 0:  # as llama.cpp tells the byte order
            raise _FileProblem(
                "was written for machines of the other byte order (big-endian), which llama.cpp does not read"
            )
        if version not in VERSIONS:
            raise _FileProblem(f"is of GGUF version {version}; llama.cpp reads {' and '.join(map(str, VERSIONS))}")
        return version

    def tensor(self) -> tuple[Tensor, int]:
        """The next tensor and the offset of its data."""
        name = self.text(N_NAME_MAX, "a tensor's name")
        n_dims = self.number("<I")
        if n_dims > N_DIMS_MAX:
            raise _FileProblem(f"is damaged: the tensor {shown(name)} has {n_dims} dimensions, more than {N_DIMS_MAX}")
        shape = tuple(self.number("<Q") for _ in range(n_dims))
        kind, offset = self.number("<I"), self.number("<Q")
        if kind not in TENSOR_TYPES:
            raise _FileProblem(f"has the tensor {shown(name)} of type {kind}, which is not known")
        label, n_block, n_block_bytes = TENSOR_TYPES[kind]
        n_elements = prod(shape)
        if (shape[0] if shape else 1) % n_block:
            raise _FileProblem(f"is damaged: rows of the tensor {shown(name)} are not whole blocks of {label}")
        if n_elements >= 2**63:
            raise _FileProblem(f"is damaged: the tensor {shown(name)} has {n_elements} elements")
        return Tensor(name, shape, label, n_elements, n_elements // n_block * n_block_bytes), offset

    def value(self, key: str) -> Value:
        """The value that follows a key and its type."""
        kind = self.kind(key)
        if kind in SCALARS:
            number: Scalar = self.number(SCALARS[kind])
            return number
        if kind == GGUFValueType.STRING:
            n = self.number("<Q")
            return self.skip(n) if n > N_TEXT_READ else self.decoded(self.take(n), shown(key))

        kind, n = self.kind(key), self.number("<Q")
        if kind == GGUFValueType.STRING:
            if n > N_STRINGS_MAX:
                raise _FileProblem(f"is damaged: {shown(key)} has {n} strings")
            if key == TOKENS:
                self.tokens(n)
            else:
                for _ in self.texts(n):
                    pass
            return Skipped(n)
        if kind not in SCALARS:
            raise _FileProblem(f"is damaged: {shown(key)} is an array of arrays")
        form = SCALARS[kind]
        if n > N_ARRAY_READ:
            self.skip(n * struct.calcsize(form))
            return Skipped(n)
        return tuple(self.number(form) for _ in range(n))

    def tokens(self, n: int) -> None:
        """A vocabulary, in which llama.cpp takes a token's text up to a NUL and wants each once."""
        found: set[bytes] = set()
        for i, text in enumerate(self.texts(n)):
            token = text.partition(b"\0")[0] or b"[EMPTY_%d]" % i
            if token in found:
                raise _FileProblem(
                    f"is damaged: its vocabulary has the token {shown(token.decode(errors='replace'))} twice"
                )
            found.add(token)

    def texts(self, n: int) -> Iterator[bytes]:
        """The next n texts. They are cut from blocks of the file: of a vocabulary there are hundreds of thousands."""
        data, begin = b"", 0
        for _ in range(n):
            if len(data) < begin + 8:
                data, begin = self.block(data[begin:], 8), 0
            end = begin + 8 + N_TEXT.unpack_from(data, begin)[0]
            if len(data) < end:
                data, begin, end = self.block(data[begin:], end - begin), 0, end - begin
            yield data[begin + 8 : end]
            begin = end
        self.file.seek(begin - len(data), os.SEEK_CUR)
        self.pos += begin - len(data)

    def block(self, data: bytes, n: int) -> bytes:
        """At least n bytes that begin with what has been read, and more that follow."""
        data += self.take(n - len(data))
        return data + self.take(min(N_BLOCK, self.size - self.pos))

    def kind(self, key: str) -> GGUFValueType:
        number = self.number("<I")
        try:
            return GGUFValueType(number)
        except ValueError:
            raise _FileProblem(f"is damaged: {shown(key)} has a value of type {number}, which is not known") from None

    def text(self, n_max: int, what: str) -> str:
        n = self.number("<Q")
        if n > n_max and self.pos + n <= self.size:
            raise _FileProblem(f"is damaged: {what} has {n} bytes, more than {n_max}")
        return self.decoded(self.take(n), what)

    def decoded(self, data: bytes, what: str) -> str:
        try:
            return data.decode("utf-8")
        except UnicodeDecodeError:
            raise _FileProblem(f"is damaged: {what} is not UTF-8: {shown(data)}") from None

    def number(self, form: str) -> Any:
        return struct.unpack(form, self.take(struct.calcsize(form)))[0]

    def take(self, n: int) -> bytes:
        data = self.file.read(n) if self.pos + n <= self.size else b""
        if len(data) < n:
            raise _FileProblem(f"is truncated or damaged: it ends in its header, at byte {self.size}")
        self.pos += n
        return data

    def skip(self, n: int) -> Skipped:
        if self.pos + n > self.size:
            raise _FileProblem(f"is truncated or damaged: it ends in its header, at byte {self.size}")
        self.file.seek(n, os.SEEK_CUR)
        self.pos += n
        return Skipped(n)


def _pad(n: int, alignment: int) -> int:
    return -(-n // alignment) * alignment

"""Reading GGUF headers: the same as the gguf package reads, and one clear line for whatever is not a whole model."""

from __future__ import annotations

import ctypes
import os
import re
import struct
import time
import tracemalloc
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import gguf
import numpy as np
import pytest
from test_abi import source  # noqa: F401

from pyselfextend import _native, gguf_file
from pyselfextend.errors import ModelFileError
from pyselfextend.gguf_file import Skipped


def assert_as_gguf(path: Path) -> None:
    """Metadata and tensors are those that gguf's reader finds."""
    reader, file = gguf.GGUFReader(path), gguf_file.read(path)
    expected: dict[str, Any] = {}
    for key, field in reader.fields.items():
        if key.startswith("GGUF."):
            continue
        is_array = field.types[0] == gguf.GGUFValueType.ARRAY
        value = field.contents()
        if is_array and (field.types[-1] == gguf.GGUFValueType.STRING or len(field.data) > gguf_file.N_ARRAY_READ):
            value = Skipped(len(field.data))
        elif is_array:
            value = tuple(value)
        expected[key] = value
    assert file.metadata == expected
    assert file.version == reader.fields["GGUF.version"].contents()
    assert [(t.name, t.shape, t.type, t.n_elements, t.n_bytes) for t in file.tensors] == [
        (t.name, tuple(t.shape.tolist()), t.tensor_type.name, t.n_elements, t.n_bytes) for t in reader.tensors
    ]
    assert file.n_bytes == sum(t.data.nbytes for t in reader.tensors)
    assert file.parts == (path,)


def test_tiny_models(tiny_models: dict[str, Path]) -> None:
    for path in tiny_models.values():
        assert_as_gguf(path)


def test_a_real_model(smollm2: Path) -> None:
    assert_as_gguf(smollm2)
    file = gguf_file.read(smollm2)
    assert file.quantization == "Q4_1"
    assert file.metadata["general.name"] == "Smollm2 135M 8k Lc100K Mix1 Ep2"
    assert file.metadata["tokenizer.ggml.tokens"] == Skipped(49152)


def test_a_vocabulary_takes_no_time(smollm2: Path) -> None:
    """A second and more with gguf's reader, for 98,000 strings."""
    started = time.perf_counter()
    gguf.GGUFReader(smollm2)
    theirs = time.perf_counter() - started
    started = time.perf_counter()
    gguf_file.read(smollm2)
    assert time.perf_counter() - started < theirs / 4


def test_values_of_every_type(tmp_path: Path) -> None:
    path = tmp_path / "model.gguf"
    writer = gguf.GGUFWriter(path, "llama")
    writer.add_uint8("u8", 255)
    writer.add_int8("i8", -128)
    writer.add_uint16("u16", 65535)
    writer.add_int16("i16", -32768)
    writer.add_uint32("u32", 2**32 - 1)
    writer.add_int32("i32", -(2**31))
    writer.add_float32("f32", 0.5)
    writer.add_uint64("u64", 2**64 - 1)
    writer.add_int64("i64", -(2**63))
    writer.add_float64("f64", 0.1)
    writer.add_bool("bool", True)
    writer.add_string("text", "n\u00fcmber\n")
    writer.add_string("long text", "x" * 100_000)
    writer.add_array("numbers", [1, 2, 3])
    writer.add_array("flags", [True, False])
    writer.add_array("many", list(range(1000)))
    writer.add_array("texts", ["a", "", "c"])
    writer.add_custom_alignment(64)
    for name, kind in (("f16", np.float16), ("i32", np.int32), ("f64", np.float64)):
        writer.add_tensor(name, np.zeros((3, 5), dtype=kind))
    writer.add_tensor("q8", np.zeros((2, 34), dtype=np.uint8), raw_dtype=gguf.GGMLQuantizationType.Q8_0)
    write(writer)
    file = gguf_file.read(path)
    assert file.metadata.pop("long text") == Skipped(100_000)  # type: ignore[attr-defined]
    assert file.metadata["u64"] == 2**64 - 1
    assert file.metadata["flags"] == (True, False)
    assert file.metadata["texts"] == Skipped(3)
    assert file.tensors[-1].shape == (32, 2)
    reader = gguf.GGUFReader(path)
    assert {key: value for key, value in file.metadata.items() if not isinstance(value, (tuple, Skipped))} == {
        key: field.contents()
        for key, field in reader.fields.items()
        if not key.startswith("GGUF.") and key != "long text" and field.types[0] != gguf.GGUFValueType.ARRAY
    }
    assert [t.n_bytes for t in file.tensors] == [t.n_bytes for t in reader.tensors]


def write(writer: gguf.GGUFWriter) -> None:
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


def test_every_type_of_tensor_that_llama_cpp_knows(source: Path) -> None:  # noqa: F811
    """Their blocks as ggml itself has them; types that it has given up are not among them."""
    n_types = re.search(r"GGML_TYPE_COUNT\s*=\s*(\d+)", (source / "ggml/include/ggml.h").read_text())
    assert n_types is not None
    cdll = _native.load().cdll
    cdll.ggml_blck_size.restype, cdll.ggml_type_size.restype = ctypes.c_int64, ctypes.c_size_t
    found = {}
    for kind in range(int(n_types[1])):
        if cdll.ggml_blck_size(kind):
            found[kind] = (cdll.ggml_blck_size(kind), cdll.ggml_type_size(kind))
    assert {kind: (n_block, n_bytes) for kind, (_, n_block, n_bytes) in gguf_file.TENSOR_TYPES.items()} == found


#
# split models
#


def write_split(folder: Path) -> list[Path]:
    """Three parts, as the gguf package splits a model."""
    folder.mkdir()
    writer = gguf.GGUFWriter(folder / "model.gguf", "llama", split_max_tensors=2)
    writer.add_block_count(1)
    for i in range(5):
        writer.add_tensor(f"tensor {i}", np.full((2, 3), i, dtype=np.float32))
    write(writer)
    parts = sorted(folder.iterdir())
    assert [part.name for part in parts] == [f"model-0000{i}-of-00003.gguf" for i in (1, 2, 3)]
    return parts


def test_a_split_model(tmp_path: Path) -> None:
    parts = write_split(tmp_path / "split")
    file = gguf_file.read(parts[0])
    assert file.parts == tuple(parts)
    assert [tensor.name for tensor in file.tensors] == [f"tensor {i}" for i in range(5)]
    assert (file.n_elements, file.n_bytes) == (30, 120)
    assert file.metadata["llama.block_count"] == 1


def test_parts_of_a_split_model(tmp_path: Path) -> None:
    first, second, third = write_split(tmp_path / "split")
    for later in (second, third):
        with pytest.raises(
            ModelFileError, match=r"is a later part of a split model; give the first, .*-00001-of-00003"
        ):
            gguf_file.read(later)

    renamed = first.rename(first.with_name("renamed.gguf"))
    with pytest.raises(
        ModelFileError, match=r"renamed\.gguf says that it is one of 3 parts .*NAME-00001-of-00003\.gguf"
    ):
        gguf_file.read(renamed)
    renamed.rename(first)

    away = third.rename(third.with_name("away.gguf"))
    with pytest.raises(ModelFileError, match=f"^there is no file {third}$"):
        gguf_file.read(first)

    third.write_bytes(second.read_bytes())  # twice the same part
    with pytest.raises(ModelFileError, match=r"-00003-of-00003\.gguf is not part 3 of the model"):
        gguf_file.read(first)

    third.write_bytes(away.read_bytes()[:-9])  # 24 bytes of data, padded to 32
    with pytest.raises(ModelFileError, match=r"-00003-of-00003\.gguf is truncated"):
        gguf_file.read(first)


#
# what is not a whole model
#


def text(value: str) -> bytes:
    data = value.encode()
    return struct.pack("<Q", len(data)) + data


def header(*pairs: bytes, tensors: Iterable[bytes] = (), version: int = 3) -> bytes:
    """A file up to its tensors' data."""
    tensors = list(tensors)
    return b"GGUF" + struct.pack("<IQQ", version, len(tensors), len(pairs)) + b"".join(pairs) + b"".join(tensors)


def pair(key: str, kind: int, value: bytes) -> bytes:
    return text(key) + struct.pack("<I", kind) + value


def tensor(name: str, shape: tuple[int, ...] = (8,), kind: int = 0, offset: int = 0) -> bytes:
    return text(name) + struct.pack(f"<I{len(shape)}QIQ", len(shape), *shape, kind, offset)


U32, STRING, ARRAY = 4, 8, 9
DATA = bytes(128)

DAMAGED = {
    "is empty": b"",
    "begins with b'{\"a\"' instead of b'GGUF'": b'{"a": 1}',
    "begins with b'GG' instead": b"GG",
    "is truncated or damaged: it ends in its header": b"GGUF\3\0\0",
    "is of GGUF version 1; llama.cpp reads 2 and 3": header(version=1),
    "is of GGUF version 0": header(version=0),
    "is of GGUF version 4": header(version=4),
    "for machines of the other byte order": header(version=0x03000000),
    "holds no tensors": header(pair("a", U32, bytes(4))),
    "have the key ''": header(pair("", U32, bytes(4)), tensors=[tensor("t")]) + DATA,
    "have twice the key 'a'": header(*[pair("a", U32, bytes(4))] * 2, tensors=[tensor("t")]) + DATA,
    "'a' has a value of type 13, which is not known": header(pair("a", 13, bytes(8)), tensors=[tensor("t")]) + DATA,
    "'a' is an array of arrays": header(pair("a", ARRAY, struct.pack("<IQ", ARRAY, 1)), tensors=[tensor("t")]) + DATA,
    "'a' has 2305843009213693952 strings": header(pair("a", ARRAY, struct.pack("<IQ", STRING, 2**61))) + DATA,
    "ends in its header, at byte 177": header(pair("a", ARRAY, struct.pack("<IQ", U32, 2**61))) + DATA,
    "a key has 65536 bytes, more than 65535": header(pair("k" * 65536, U32, bytes(4))),
    "general.alignment is 48, not a power of two": header(pair("general.alignment", U32, struct.pack("<I", 48))),
    "general.alignment is 0, not": header(pair("general.alignment", U32, bytes(4))),
    "a tensor's name has 64 bytes, more than 63": header(tensors=[tensor("t" * 64)]) + DATA,
    "the tensor 't' has 5 dimensions, more than 4": header(tensors=[tensor("t", (1,) * 5)]) + DATA,
    "the tensor 't' of type 4, which is not known": header(tensors=[tensor("t", kind=4)]) + DATA,
    "rows of the tensor 't' are not whole blocks of Q8_0": header(tensors=[tensor("t", (40,), kind=8)]) + DATA,
    "the tensor 't' has 9223372036854775808 elements": header(tensors=[tensor("t", (2**62, 2))]) + DATA,
    "it has the tensor 't' twice": header(tensors=[tensor("t"), tensor("t", offset=32)]) + DATA,
    "data of the tensor 'u' do not follow": header(tensors=[tensor("t"), tensor("u", offset=64)]) + DATA,
    "is truncated: it has 223 bytes, its tensors go on up to byte 224": (
        header(tensors=[tensor("t"), tensor("u", (24,), offset=32)]).ljust(223, b"\0")
    ),
}


@pytest.mark.parametrize("message", DAMAGED)
def test_damaged_files(tmp_path: Path, message: str) -> None:
    path = tmp_path / "model.gguf"
    path.write_bytes(DAMAGED[message])
    with pytest.raises(ModelFileError) as caught:
        gguf_file.read(path)
    assert message in str(caught.value)
    assert str(caught.value).count(str(path)) == 1
    assert "\n" not in str(caught.value)


def test_what_was_damaged_is_fine_otherwise(tmp_path: Path) -> None:
    """The pieces of the test above make a file that is read."""
    path = tmp_path / "model.gguf"
    two = header(pair("a", U32, struct.pack("<I", 7)), tensors=[tensor("t"), tensor("u", (24,), offset=32)])
    path.write_bytes(two.ljust(160, b"\0") + DATA)
    file = gguf_file.read(path)
    assert file.metadata == {"a": 7}
    assert [(t.name, t.shape, t.n_bytes) for t in file.tensors] == [("t", (8,), 32), ("u", (24,), 96)]
    assert file.quantization == "mostly F32"


def test_big_endian(tmp_path: Path) -> None:
    path = tmp_path / "model.gguf"
    writer = gguf.GGUFWriter(path, "llama", endianess=gguf.GGUFEndian.BIG)
    writer.add_tensor("t", np.zeros(8, dtype=np.float32))
    write(writer)
    with pytest.raises(ModelFileError, match="was written for machines of the other byte order"):
        gguf_file.read(path)


def test_what_is_no_file(tmp_path: Path) -> None:
    with pytest.raises(ModelFileError, match=f"^there is no file {tmp_path / 'missing.gguf'}$"):
        gguf_file.read(tmp_path / "missing.gguf")
    with pytest.raises(ModelFileError, match="is a directory, not a GGUF file"):
        gguf_file.read(tmp_path)
    with pytest.raises(ModelFileError, match="cannot be read: File name too long"):
        gguf_file.read(tmp_path / ("n" * 256))
    if hasattr(os, "mkfifo"):
        os.mkfifo(tmp_path / "pipe")
        with pytest.raises(ModelFileError, match="is not a regular file"):
            gguf_file.read(tmp_path / "pipe")


def test_a_file_that_may_not_be_read(tmp_path: Path, tiny_model: Path) -> None:
    path = tmp_path / "model.gguf"
    path.write_bytes(tiny_model.read_bytes())
    path.chmod(0)
    if os.access(path, os.R_OK):
        pytest.skip("this user may read everything")
    with pytest.raises(ModelFileError, match="cannot be read: Permission denied"):
        gguf_file.read(path)


def test_data_are_not_read(tmp_path: Path) -> None:
    """A file of 200 GB, most of it a hole: the header alone counts."""
    path = tmp_path / "model.gguf"
    n = 200 * 10**9 // 4
    path.write_bytes(header(tensors=[tensor("t", (n,))]))
    os.truncate(path, 96 + 4 * n)
    tracemalloc.start()
    try:
        assert gguf_file.read(path).n_bytes == 4 * n
        assert tracemalloc.get_traced_memory()[1] < 10**6
    finally:
        tracemalloc.stop()


def test_lengths_are_not_believed(tmp_path: Path) -> None:
    """Lengths that a large file could hold, in a hole of it: neither memory nor time for what is of no interest."""
    path = tmp_path / "model.gguf"
    for value in (struct.pack("<IQ", U32, 2**33), struct.pack("<IQ", STRING, 2**33), struct.pack("<IQ", 5, 2**33)):
        path.write_bytes(header(pair("a", ARRAY, value)))
        os.truncate(path, 2**36)
        tracemalloc.start()
        started = time.perf_counter()
        try:
            with pytest.raises(ModelFileError):
                gguf_file.read(path)
            assert tracemalloc.get_traced_memory()[1] < 10**6
        finally:
            tracemalloc.stop()
        assert time.perf_counter() - started < 1


def test_messages_stay_short(tmp_path: Path) -> None:
    path = tmp_path / "model.gguf"
    for key in ("\x1b[31m" + "k" * 60_000, "\n" * 60_000):
        path.write_bytes(header(*[pair(key, U32, bytes(4))] * 2, tensors=[tensor("t")]) + DATA)
        with pytest.raises(ModelFileError) as caught:
            gguf_file.read(path)
        assert len(str(caught.value)) < len(str(path)) + 200
        assert str(caught.value).isprintable()

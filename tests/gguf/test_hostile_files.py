"""Files that are truncated, corrupt or malicious are refused in one sentence, at once, in little memory."""

import contextlib
import os
import random
import time
import tracemalloc
from pathlib import Path
from struct import pack

import pytest

from qformats.errors import CheckpointError, ModelNotFoundError
from qformats_gguf.header import TensorInfo, serialize
from qformats_gguf.metadata import ValueType, array, boolean, f32, string, u32
from qformats_gguf.reader import read
from qformats_gguf.shards import open_model
from qformats_gguf.types import by_name

U32, BOOL, STRING, ARRAY = 4, 7, 8, 9


def text(raw: bytes) -> bytes:
    return pack("<Q", len(raw)) + raw


def pair(key: bytes, kind: int, payload: bytes) -> bytes:
    return text(key) + pack("<I", kind) + payload


def entry(name: bytes, ne: tuple[int, ...], kind: int = 0, offset: int = 0) -> bytes:
    return text(name) + pack(f"<I{len(ne)}QIQ", len(ne), *ne, kind, offset)


def build(pairs=(), entries=(), data=b"", *, version=3, keys=None, tensors=None) -> bytes:
    counts = (len(entries) if tensors is None else tensors, len(pairs) if keys is None else keys)
    head = b"GGUF" + pack("<IQQ", version, *counts) + b"".join((*pairs, *entries))
    return head + bytes(-len(head) % 32) + data


HANG = b"GGUF" + pack("<IQQ", 3, 0, 1) + pack("<Q", 3) + b"abc" + pack("<IIQ", ARRAY, U32, 2**63)
ROW = bytes(32)
NESTED = pack("<IQ", ARRAY, 1) * 5000 + pack("<IQ", U32, 0)

REFUSED = {
    "empty": (b"", "is empty; expected a GGUF file"),
    "tiny": (b"GG", r"starts with b'GG'; expected a GGUF file, which starts with b'GGUF'"),
    "only magic": (b"GGUF", "is 4 bytes long; expected at least 24"),
    "old ggml": (b"tjgg" + bytes(40), "a GGML file from before GGUF"),
    "git lfs": (b"version https://git-lfs.github.com/spec/v1\n", "a Git LFS pointer"),
    "zip": (b"PK\x03\x04" + bytes(40), "a zip archive"),
    "version 0": (build(version=0), "has GGUF version 0; expected version 2 or 3"),
    "version 1": (build(version=1), "has GGUF version 1.*Convert the original model again"),
    "version 4": (build(version=4), "has GGUF version 4.*A newer qformats"),
    "big-endian": (b"GGUF" + pack(">IQQ", 3, 0, 0), "is big-endian.*gguf-convert-endian bad.gguf little"),
    "key count": (
        build(keys=2**63),
        "declares 9223372036854775808 metadata keys; expected at most 0 in a file of 32",
    ),
    "tensor count": (build(tensors=2**64 - 1), "declares 18446744073709551615 tensors; expected at most 0"),
    "key cap": (
        build(data=bytes(13 * 65_537), keys=65_537),
        "declares 65537 metadata keys; expected at most 65536",
    ),
    "key length": (build([pack("<Q", 2**63) + bytes(9)]), "metadata key 0 is 9223372036854775808 bytes long"),
    "key cut": (
        build([pack("<Q", 99) + bytes(9)]),
        "metadata key 0 needs 99 bytes from byte 32, but the file ends",
    ),
    "key empty": (build([pair(b"", U32, pack("<I", 1))]), "metadata key 0 is empty"),
    "key twice": (build([pair(b"k", BOOL, b"\1")] * 2), "metadata key 'k' appears twice"),
    "key not UTF-8": (
        build([pair(b"k\xff", BOOL, b"\1")]),
        r"metadata key 0 is 'k\\\\xff'; expected valid UTF-8",
    ),
    "value type": (build([pair(b"k", 13, bytes(4))]), "the value of key 'k' has the unknown type 13"),
    "element type": (
        build([pair(b"k", ARRAY, pack("<IQ", 99, 0))]),
        "an element of the value of key 'k' has the unk",
    ),
    "known hang": (HANG, "the value of key 'abc' is an array of 9223372036854775808 elements"),
    "array cut": (
        build([pair(b"k", ARRAY, pack("<IQ", U32, 2**30))]),
        "needs 4294967296 bytes from byte 49, but the file ends",
    ),
    "strings cut": (
        build([pair(b"k", ARRAY, pack("<IQ", STRING, 2**30))]),
        "is an array of 1073741824 strings, but only",
    ),
    "string length": (
        build([pair(b"k", STRING, pack("<Q", 2**64 - 1))]),
        "string 0 of the value of key 'k' starts at",
    ),
    "last string cut": (
        build([pair(b"k", ARRAY, pack("<IQ", STRING, 2) + text(b"a") + pack("<Q", 50))]),
        "string 1 of the value of key 'k' starts at byte 66",
    ),
    "nested arrays": (build([pair(b"k", ARRAY, NESTED)]), "the value of key 'k' is an array of arrays"),
    "alignment type": (
        build([pair(b"general.alignment", 10, pack("<Q", 32))]),
        "general.alignment has type U64",
    ),
    "alignment 0": (
        build([pair(b"general.alignment", U32, pack("<I", 0))]),
        "general.alignment is 0; expected a pow",
    ),
    "alignment 48": (build([pair(b"general.alignment", U32, pack("<I", 48))]), "general.alignment is 48"),
    "alignment huge": (
        build([pair(b"general.alignment", U32, pack("<I", 2**31))], [entry(b"t", (8,))], ROW),
        "needs bytes 2147483648 to 2147483680",
    ),
    "name length": (
        build((), [entry(b"n" * 64, (8,))], ROW),
        "the name of tensor 0 is 64 bytes long; expected at most",
    ),
    "name not UTF-8": (
        build((), [entry(b"\xc3", (8,))], ROW),
        "the name of tensor 0 is .* expected valid UTF-8",
    ),
    "name twice": (
        build((), [entry(b"t", (8,)), entry(b"t", (8,), 0, 32)], ROW * 2),
        "tensor 't': appears twice",
    ),
    "five dimensions": (
        build((), [entry(b"t", (1,) * 5)], ROW),
        "tensor 't': has 5 dimensions; expected at most 4",
    ),
    "2**32-1 dimensions": (build((), [text(b"t") + pack("<I", 2**32 - 1)], ROW), "has 4294967295 dimensions"),
    "dimension 0": (
        build((), [entry(b"t", (8, 0))], ROW),
        r"has shape \(0, 8\); expected no dimension of size 0",
    ),
    "product overflow": (
        build((), [entry(b"t", (2**62, 2**62, 16))], ROW),
        "needs bytes 96 to 1361129467683753853853",
    ),
    "product 2**64": (
        build((), [entry(b"t", (2**32, 2**32))], ROW),
        "needs bytes 96 to 73786976294838206560",
    ),
    "partial block": (
        build((), [entry(b"t", (48,), 2)], ROW),
        "has rows of 48 elements; expected a multiple of 32",
    ),
    "scalar block": (build((), [entry(b"t", (), 2)], ROW), "has rows of 1 elements"),
    "offset unaligned": (
        build((), [entry(b"t", (8,), 0, 8)], ROW * 2),
        "starts at offset 8; expected a multiple of 32",
    ),
    "offset outside": (build((), [entry(b"t", (8,), 0, 2**63)], ROW), "needs bytes 92233720368547758"),
    "data cut": (
        build((), [entry(b"t", (9,))], ROW),
        "needs bytes 64 to 100, but the file ends at byte 96.*truncated",
    ),
    "overlap": (
        build((), [entry(b"t", (16,)), entry(b"u", (8,), 0, 32)], ROW * 3),
        "tensor 't': covers bytes 96 to 160, but tensor 'u' starts at 128; expected tensors that do",
    ),
    "same place": (build((), [entry(b"t", (8,)), entry(b"u", (8,))], ROW), "tensors that do not overlap"),
    "same place, unknown type": (
        build((), [entry(b"t", (8,), 77), entry(b"u", (8,))], ROW),
        "do not overlap",
    ),
    "entries missing": (build((), [entry(b"t", (8,))], bytes(0), tensors=2), "declares 2 tensors|needs"),
}


@pytest.mark.parametrize("case", REFUSED)
def test_each_check_refuses_its_file(tmp_path, case):
    content, message = REFUSED[case]
    path = tmp_path / "bad.gguf"
    path.write_bytes(content)
    begin = time.perf_counter()
    with pytest.raises(CheckpointError, match=message) as caught:
        read(path)
    assert time.perf_counter() - begin < 0.5
    assert str(caught.value).startswith(f"{path}: ")
    assert len(str(caught.value)) < 500 + len(str(path))


def test_the_known_hang_is_the_51_byte_file():
    assert len(HANG) == 51


def test_long_keys_do_not_flood_the_message(tmp_path):
    path = tmp_path / "bad.gguf"
    path.write_bytes(build([pair(b"k" * 60_000, 13, b"")]))
    with pytest.raises(CheckpointError, match=r"of key 'k{77}\.\.\.' has the unknown type 13") as caught:
        read(path)
    assert len(str(caught.value)) < 300 + len(str(path))


def test_what_is_no_file(tmp_path):
    with pytest.raises(
        CheckpointError, match=r"is a folder; expected a GGUF file\. Give the \.gguf file itself"
    ):
        read(tmp_path)
    with pytest.raises(ModelNotFoundError, match="no such file"):
        read(tmp_path / "absent.gguf")
    os.mkfifo(tmp_path / "pipe")
    with pytest.raises(CheckpointError, match="is not a regular file"):
        read(tmp_path / "pipe")
    (tmp_path / "file").write_bytes(b"")
    with pytest.raises(CheckpointError, match="cannot be read"):
        read(tmp_path / "file" / "below.gguf")


def test_unusual_but_harmless_files_are_read(tmp_path):
    path = tmp_path / "odd.gguf"
    entries = [
        entry(b"last", (8,), 0, 160),
        entry(b"future", (3,), 77, 32),
        entry(b"scalar", (), 0, 0),
        entry(b"future2", (3,), 2**32 - 1, 224),
    ]
    path.write_bytes(build([pair(b"flag", BOOL, b"\x07")], entries, bytes(range(256)) * 2))
    with read(path) as file:
        start = file.data_start
        assert file.metadata["flag"].data is True
        placed = {name: (t.shape, t.type_id, t.offset - start, t.nbytes) for name, t in file.tensors.items()}
        assert placed == {
            "last": ((8,), 0, 160, 32),
            "future": ((3,), 77, 32, 128),
            "scalar": ((), 0, 0, 4),
            "future2": ((3,), 2**32 - 1, 224, 512 - 224),
        }
        assert file.tensors["future"].type is None
        assert file.data("future").tolist() == list(range(32, 160))


def valid_file() -> bytes:
    metadata = {
        "general.architecture": string("llama"),
        "general.alignment": u32(32),
        "eps": f32(1e-5),
        "flag": boolean(True),
        "tokens": array(ValueType.STRING, ["<s>", "a", "é"]),
        "scores": array(ValueType.F32, [1.0, 2.0]),
        "flags": array(ValueType.BOOL, [True]),
    }
    tensors = [
        TensorInfo("a", (2, 32), by_name("q4_0")),
        TensorInfo("b", (3, 5), by_name("f32")),
        TensorInfo("c", (256,), by_name("q6_k")),
    ]
    header = serialize(metadata, tensors)
    return header.data.ljust(header.total_size, b"\xaa")


def survives(path: Path, content: bytes) -> bool:
    """Read everything that `content` holds; true if it was accepted, false if refused as it should be."""
    path.write_bytes(content)
    begin, accepted = time.perf_counter(), False
    with contextlib.suppress(CheckpointError), open_model(path) as model:
        total = sum(int(model.data(tensor).sum()) for tensor in model.tensors.values())
        accepted = total >= 0 and all(value.data is not None for value in model.metadata.values())
    assert time.perf_counter() - begin < 1
    return accepted


def test_every_truncation_is_refused(tmp_path):
    content = valid_file()
    end = serialized_end(content)
    assert survives(tmp_path / "t.gguf", content[:end])
    for length in range(end):
        assert not survives(tmp_path / "t.gguf", content[:length]), length


def serialized_end(content: bytes) -> int:
    """Where the data of the last tensor ends, its padding not counted."""
    return len(content) - (-210 % 32)


def test_random_damage_parses_or_is_refused(tmp_path):
    content = valid_file()
    header = len(content) - (64 + 64 + 224)
    generator = random.Random(20_240_802)
    tracemalloc.start()
    try:
        outcomes = []
        for _ in range(3000):
            damaged = bytearray(content)
            for _ in range(generator.randint(1, 4)):
                extreme = generator.choice((0, 1, 0x7F, 0x80, 0xFF))
                damaged[generator.randrange(header)] = generator.choice((extreme, generator.randrange(256)))
            outcomes.append(survives(tmp_path / "d.gguf", bytes(damaged)))
        _, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert peak < 2_000_000
    # Damage to text and values is harmless, damage to lengths is not: both must have been seen.
    assert 200 < sum(outcomes) < 2800

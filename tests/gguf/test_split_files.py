"""Models in several files: written, opened from any part, and refused when parts are missing or foreign."""

import shutil
from pathlib import Path

import numpy as np
import pytest

from qformats.errors import CheckpointError, ConfigError, ModelNotFoundError
from qformats_gguf.header import TensorInfo, serialize, shard_metadata, shard_name, split
from qformats_gguf.metadata import Metadata, Value, ValueType, i32, string, u16, u32
from qformats_gguf.reader import read
from qformats_gguf.shards import open_model
from qformats_gguf.types import by_name

METADATA: Metadata = {"general.architecture": string("llama"), "general.alignment": u32(64)}
TENSORS = [TensorInfo(f"blk.{i}.w", (2, 32), by_name("q8_0")) for i in range(5)]


def write_part(path: Path, metadata: Metadata, tensors: list[TensorInfo], fill: int = 0) -> None:
    header = serialize(metadata, tensors)
    content = bytearray(header.data.ljust(header.total_size, b"\0"))
    for tensor, offset in zip(tensors, header.offsets, strict=True):
        content[offset : offset + tensor.nbytes] = (
            bytes([fill + int(tensor.name.split(".")[1])]) * tensor.nbytes
        )
    path.write_bytes(content)


@pytest.fixture
def parts(tmp_path):
    groups = split(TENSORS, max_tensors=2)
    paths = []
    for index, group in enumerate(groups):
        paths.append(tmp_path / shard_name("toy", index, len(groups)))
        write_part(paths[-1], shard_metadata(METADATA, index, len(groups), len(TENSORS)), group)
    return paths


def test_grouping():
    assert [len(group) for group in split(TENSORS)] == [5]
    assert [len(group) for group in split(TENSORS, max_tensors=2)] == [2, 2, 1]
    # 68 bytes each, 96 padded.
    assert [len(group) for group in split(TENSORS, max_bytes=3 * 96)] == [3, 2]
    assert [len(group) for group in split(TENSORS, max_bytes=3 * 96 - 1)] == [2, 2, 1]
    assert [len(group) for group in split(TENSORS, max_tensors=1, max_bytes=10**9)] == [1] * 5
    assert [len(group) for group in split(TENSORS, max_bytes=1)] == [1] * 5
    assert split([], max_tensors=1) == [[]]
    with pytest.raises(ConfigError, match="max_bytes: found 0; expected at least 1"):
        split(TENSORS, max_bytes=0)


def test_metadata_of_parts():
    stale = METADATA | {"split.count": u16(9)}
    assert shard_metadata(stale, 0, 1, 5) == METADATA
    assert shard_metadata(stale, 0, 2, 5) == METADATA | {
        "split.no": u16(0),
        "split.count": u16(2),
        "split.tensors.count": i32(5),
    }
    assert list(shard_metadata(METADATA, 1, 2, 5)) == [
        "general.alignment",
        "split.no",
        "split.count",
        "split.tensors.count",
    ]
    with pytest.raises(ConfigError, match="number of parts: found 65536"):
        shard_metadata(METADATA, 0, 65536, 5)
    with pytest.raises(ConfigError, match="part: found 2; expected 0 to 1"):
        shard_name("a", 2, 2)


@pytest.mark.parametrize("given", [0, 1, 2])
def test_a_model_opens_from_any_part(parts, given):
    with open_model(parts[given]) as model:
        assert model.path == parts[0]
        assert [file.path for file in model.files] == parts
        assert model.metadata == METADATA
        assert list(model.tensors) == [tensor.name for tensor in TENSORS]
        for i, tensor in enumerate(model.tensors.values()):
            assert set(model.data(tensor).tolist()) == {i}
            assert model.file_of(tensor.name).path == parts[i // 2]
    with pytest.raises(ValueError, match="is closed"):
        model.data("blk.0.w")


def test_read_opens_one_part(parts):
    with read(parts[1]) as file:
        assert list(file.tensors) == ["blk.2.w", "blk.3.w"]
        assert file.metadata["split.no"].data == 1


def test_links_are_not_followed_to_find_parts(parts, tmp_path):
    linked = tmp_path / "snapshot"
    linked.mkdir()
    for index, path in enumerate(parts):
        target = path.rename(tmp_path / f"blob{index}")
        (linked / path.name).symlink_to(target)
    with open_model(linked / parts[1].name) as model:
        assert len(model.tensors) == 5


def test_a_single_file_with_one_part(tmp_path):
    keys = {"split.no": u16(0), "split.count": u16(1), "split.tensors.count": i32(5)}
    write_part(tmp_path / "one.gguf", METADATA | keys, TENSORS)
    with open_model(tmp_path / "one.gguf") as model:
        assert model.metadata == METADATA
        assert len(model.tensors) == 5


def test_keys_that_a_merge_left_behind_are_ignored(tmp_path):
    write_part(tmp_path / "merged.gguf", shard_metadata(METADATA, 0, 3, 5), TENSORS)
    with open_model(tmp_path / "merged.gguf") as model:
        assert model.metadata == METADATA
        assert len(model.tensors) == 5


def refuses(path: Path, message: str) -> None:
    with pytest.raises(CheckpointError, match=message):
        open_model(path)


def test_missing_parts_are_named(parts):
    parts[1].unlink()
    refuses(
        parts[2], r"is part 3 of 3, and toy-00002-of-00003\.gguf is missing; expected all parts in one folder"
    )
    parts[0].unlink()
    refuses(parts[2], r"toy-00001-of-00003\.gguf, toy-00002-of-00003\.gguf are missing")
    with pytest.raises(ModelNotFoundError, match="no such file"):
        open_model(parts[0])


def test_a_renamed_part_is_refused(parts):
    renamed = parts[0].rename(parts[0].with_name("renamed.gguf"))
    refuses(renamed, r"says it is part 1 of 3; expected a file name that ends in -00001-of-00003\.gguf")


def test_swapped_parts_are_refused(parts):
    shutil.copy(parts[1], parts[2])
    refuses(parts[0], r"toy-00003-of-00003\.gguf: has split\.no = 1; expected split\.no = 2")


def test_a_part_of_another_split_is_refused(parts):
    write_part(parts[1], shard_metadata(METADATA, 1, 4, 5), TENSORS[2:4])
    refuses(parts[0], r"has split\.count = 4; expected split\.count = 3")
    write_part(parts[1], METADATA, TENSORS[2:4])
    refuses(parts[0], r"toy-00002-of-00003\.gguf: has no split\.no; expected split\.no = 1")


def test_tensor_count_is_checked(parts):
    write_part(parts[2], shard_metadata({}, 2, 3, 5), [])
    refuses(parts[1], r"its 3 parts hold 4 tensors; expected 5 \(split\.tensors\.count\)")


def test_a_tensor_in_two_parts_is_refused(parts):
    write_part(parts[2], shard_metadata({}, 2, 3, 5), TENSORS[:1])
    refuses(parts[0], r"toy-00003-of-00003\.gguf: tensor 'blk\.0\.w': is also in toy-00001-of-00003\.gguf")


def test_split_keys_must_be_integers(parts):
    broken = METADATA | {"split.count": string("3")}
    write_part(parts[0], broken, TENSORS)
    refuses(parts[0], r"split\.count: found '3'; expected a whole number")
    write_part(parts[0], METADATA | {"split.count": Value(ValueType.BOOL, True)}, TENSORS)
    refuses(parts[0], r"split\.count: found True; expected a whole number")


def test_gguf_py_reads_a_part(parts):
    from gguf import GGUFReader

    theirs = GGUFReader(parts[1])
    assert theirs.fields["split.tensors.count"].contents() == 5
    assert [(tensor.name, int(np.unique(tensor.data)[0])) for tensor in theirs.tensors] == [
        ("blk.2.w", 2),
        ("blk.3.w", 3),
    ]

"""Importance matrices in files: both forms of llama.cpp, names for any model, and files that are not to be trusted."""

import struct

import gguf
import numpy as np
import pytest
from models import glm, moe

import qformats
from qformats.errors import CheckpointError, ConfigError
from qformats.exporting.importance import read_importance, write_importance
from qformats.interfaces import ColumnSums, Importance

QUERY = "model.layers.1.self_attn.q_proj.weight"


def write_gguf(path, entries, *, kind="imatrix", datasets=("text.txt",), chunks=3, size=512):
    """As llama-imatrix writes it: sums `[matrices, columns]` and counts `[matrices, 1]`, float32."""
    writer = gguf.GGUFWriter(path, arch="")
    writer.kv_data[0].pop("general.architecture", None)
    writer.add_string("general.type", kind)
    writer.add_array("imatrix.datasets", list(datasets))
    writer.add_uint32("imatrix.chunk_count", chunks)
    writer.add_uint32("imatrix.chunk_size", size)
    for name, (squares, counts) in entries.items():
        writer.add_tensor(f"{name}.in_sum2", np.asarray(squares, np.float32))
        writer.add_tensor(f"{name}.counts", np.asarray(counts, np.float32).reshape(-1, 1))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path


def legacy(entries, *, chunks=3, dataset=b"text.txt"):
    content = struct.pack("<i", len(entries))
    for name, (calls, values) in entries.items():
        raw = name.encode()
        content += struct.pack(f"<i{len(raw)}sii", len(raw), raw, calls, len(values))
        content += np.asarray(values, "<f4").tobytes()
    return content + (struct.pack("<ii", chunks, len(dataset)) + dataset if chunks is not None else b"")


def squares(columns, matrices=1, seed=0):
    return np.random.default_rng(seed).random((matrices, columns)).astype(np.float32) * 100


def test_the_gguf_form_is_read(tmp_path):
    sums = squares(256)
    path = write_gguf(tmp_path / "i.gguf", {"blk.1.attn_q.weight": (sums, [1536])}, datasets=("a", "b"))
    found = read_importance([path], qformats.open("demo"))
    assert (found.datasets, found.chunks, found.chunk_size, found.entries) == (("a", "b"), 3, 512, 1)
    means = found.sums[QUERY].means((256, 256))
    assert means.dtype == np.float32
    assert np.array_equal(means, sums / np.float32(1536))


def test_the_older_form_is_read(tmp_path):
    values = squares(256)[0]
    path = tmp_path / "i.dat"
    path.write_bytes(legacy({"blk.1.attn_q.weight": (7, values), "blk.0.attn_q.weight": (0, values)}))
    found = read_importance([path], qformats.open("demo"))
    assert (found.datasets, found.chunks, found.entries) == (("text.txt",), 3, 2)
    # llama-quantize divides by the calls, where there are any.
    assert np.array_equal(found.sums[QUERY].means((256, 256))[0], values / np.float32(7))
    assert np.array_equal(found.sums[QUERY.replace("1", "0")].means((256, 256))[0], values)


def test_the_oldest_files_tell_neither_chunks_nor_data_set(tmp_path):
    path = tmp_path / "i.dat"
    path.write_bytes(legacy({"blk.1.attn_q.weight": (7, squares(256)[0])}, chunks=None))
    found = read_importance([path], None)
    assert (found.datasets, found.chunks) == ((), 0)


def test_what_is_written_is_the_file_that_llama_imatrix_writes(tmp_path):
    source = qformats.open("demo")
    sums = {
        name: ColumnSums(squares(t.shape[1], seed=i).astype(np.float64), np.array([1024.0]))
        for i, (name, t) in enumerate(source.tensors.items())
        if "_proj" in name
    }
    write_importance(
        Importance(sums, datasets=("t.txt",), chunks=2, chunk_size=512), tmp_path / "o.gguf", source
    )
    reader = gguf.GGUFReader(tmp_path / "o.gguf")
    assert reader.fields["general.type"].contents() == "imatrix"
    assert reader.fields["imatrix.datasets"].contents() == ["t.txt"]
    for key, value in (("imatrix.chunk_count", 2), ("imatrix.chunk_size", 512)):
        assert (reader.fields[key].contents(), reader.fields[key].types) == (
            value,
            [gguf.GGUFValueType.UINT32],
        )
    tensors = {tensor.name: tensor for tensor in reader.tensors}
    assert len(tensors) == 2 * 28
    names = [name.removesuffix(".in_sum2") for name in tensors if name.endswith(".in_sum2")]
    assert names == sorted(names)
    held = tensors["blk.1.attn_q.weight.in_sum2"]
    assert (held.tensor_type, list(held.shape)) == (gguf.GGMLQuantizationType.F32, [256, 1])
    assert np.array_equal(held.data, sums[QUERY].squares.astype(np.float32))
    assert np.array_equal(tensors["blk.1.attn_q.weight.counts"].data, [[1024.0]])


def test_several_files_are_added_up(tmp_path):
    one, two = squares(256, seed=1), squares(256, seed=2)
    name = "blk.1.attn_q.weight"
    files = [
        write_gguf(tmp_path / "1.gguf", {name: (one, [512])}, datasets=("a",), chunks=1),
        write_gguf(tmp_path / "2.gguf", {name: (two, [1024]), "blk.0.attn_q.weight": (one, [1])}, chunks=2),
    ]
    (tmp_path / "3.dat").write_bytes(legacy({name: (4, one[0])}, chunks=4))
    found = read_importance([*files, tmp_path / "3.dat"], qformats.open("demo"))
    assert (found.chunks, found.datasets, found.entries) == (7, ("a", "text.txt"), 2)
    # In the older form a call is a chunk of 512 tokens.
    total = (one.astype(float) + two + 512.0 * one) / (512 + 1024 + 4 * 512)
    np.testing.assert_allclose(found.sums[QUERY].means((256, 256)), total, rtol=1e-6)
    assert found.sums[QUERY.replace("1", "0")].counts.tolist() == [1]


def test_files_of_different_models_are_not_added_up(tmp_path):
    name = "blk.1.attn_q.weight"
    files = [write_gguf(tmp_path / f"{n}.gguf", {name: (squares(n), [512])}) for n in (256, 512)]
    with pytest.raises(ConfigError, match=r"blk\.1\.attn_q\.weight.*512.*256.*different models"):
        read_importance(files, None)


def test_experts_are_counted_apart_whatever_a_folder_calls_them(tmp_path):
    """Mixtral has no architecture here, and stores its experts one by one."""
    source = qformats.open(moe.build("mixtral", tmp_path / "in"))
    sums, counts = squares(64, 4), [5, 0, 7, 9]
    path = write_gguf(tmp_path / "i.gguf", {"blk.1.ffn_up_exps.weight": (sums, counts)})
    found = read_importance([path], source)
    name = "model.layers.1.block_sparse_moe.experts.{}.w3.weight"
    assert set(found.sums) == {name.format(number) for number in range(4)}
    shape = source.tensors[name.format(0)].shape
    assert np.array_equal(found.sums[name.format(2)].means(shape)[0], sums[2] / np.float32(7))
    # What no token has reached counts alike in every column.
    assert np.array_equal(found.sums[name.format(1)].means(shape), np.ones((1, 64)))
    write_importance(found, tmp_path / "o.gguf", source)
    again = {t.name: t for t in gguf.GGUFReader(tmp_path / "o.gguf").tensors}
    assert np.array_equal(again["blk.1.ffn_up_exps.weight.in_sum2"].data, sums)
    assert again["blk.1.ffn_up_exps.weight.counts"].data[:, 0].tolist() == counts


def test_the_older_form_has_one_count_for_all_experts(tmp_path):
    source = qformats.open(moe.build("qwen2-moe", tmp_path / "in"))
    values = squares(64, 4)
    (tmp_path / "i.dat").write_bytes(legacy({"blk.0.ffn_down_exps.weight": (2, values.ravel())}))
    found = read_importance([tmp_path / "i.dat"], source)
    sums = found.sums["model.layers.0.mlp.experts.3.down_proj.weight"]
    assert np.array_equal(sums.means((64, 64))[0], values[3] / np.float32(2))


def test_a_gguf_file_finds_its_entries_under_both_names(tmp_path):
    model = tmp_path / "m.gguf"
    qformats.export("demo", model, format="gguf:f16")
    sums = squares(256)
    path = write_gguf(tmp_path / "i.gguf", {"blk.1.attn_q.weight": (sums, [1])})
    found = read_importance([path], qformats.open(model))
    assert set(found.sums) == {"blk.1.attn_q.weight", QUERY}


def test_a_joined_input_serves_its_parts(tmp_path):
    """Queries, keys and values that a file joins have one input."""
    source = qformats.open(glm.build("glm-plain", tmp_path / "in"))
    columns = source.config["hidden_size"]
    sums = squares(columns)
    path = write_gguf(tmp_path / "i.gguf", {"blk.0.attn_qkv.weight": (sums, [4])})
    found = read_importance([path], source)
    names = {f"model.layers.0.self_attn.{part}_proj.weight" for part in "qkv"}
    assert set(found.sums) == names
    assert all(np.array_equal(found.sums[name].squares, sums) for name in names)


def test_columns_of_another_model_are_refused(tmp_path):
    path = write_gguf(tmp_path / "i.gguf", {"blk.1.attn_q.weight": (squares(128), [1])})
    sums = read_importance([path], qformats.open("demo")).sums[QUERY]
    with pytest.raises(
        ConfigError, match=r"importance of q.*128 numbers.*256, one for each column.*another model"
    ):
        sums.means((256, 256), "q")


def test_entries_of_no_tensor_are_refused(tmp_path):
    path = write_gguf(tmp_path / "i.gguf", {"blk.77.attn_q.weight": (squares(256), [1])})
    with pytest.raises(CheckpointError, match="no entry for any tensor of the model"):
        read_importance([path], qformats.open("demo"))


def _with(name, value, where="in_sum2"):
    def make(path):
        sums, counts = squares(4), np.ones(1, np.float32)
        (sums if where == "in_sum2" else counts).flat[0] = value
        write_gguf(path, {name: (sums, counts)})

    return make


def _half(path):
    write_gguf(path, {"w": (squares(4), [1])})
    path.write_bytes(path.read_bytes()[:-40])


def _alone(suffix):
    def make(path):
        write_gguf(path, {"w": (squares(4), [1]), "x": (squares(4), [1])})
        content = path.read_bytes()
        path.write_bytes(content.replace(f"w{suffix}".encode(), f"w{suffix[:-1]}_".encode()))

    return make


def _other_type(path):
    writer = gguf.GGUFWriter(path, arch="")
    writer.add_string("general.type", "imatrix")
    writer.add_tensor("w.in_sum2", np.ones((1, 4), np.float16))
    writer.add_tensor("w.counts", np.ones((1, 1), np.float32))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


def _bytes(content):
    return lambda path: path.write_bytes(content)


ENTRY = {"blk.0.attn_q.weight": (2, [1.0, 2.0])}
GOOD = legacy(ENTRY)
HOSTILE = {
    "nan": (_with("w", np.nan), "'w'.*1 of 4 sums of squares are negative, infinite or NaN"),
    "inf": (_with("w", np.inf), "infinite"),
    "negative": (_with("w", -1.0), "negative"),
    "count-nan": (_with("w", np.nan, "counts"), "1 of 1 counts"),
    "uneven": (lambda path: write_gguf(path, {"w": (squares(4), [1, 2, 3])}), "4 sums and 3 counts"),
    "no-counts": (_alone(".counts"), r"w\.counts.*is missing"),
    "no-sums": (_alone(".in_sum2"), r"w\.in_sum2.*is missing"),
    "no-entries": (lambda path: write_gguf(path, {}), "no entries"),
    "truncated": (_half, "truncated"),
    "f16": (_other_type, "has type f16; expected f32"),
    "model": (lambda path: write_gguf(path, {}, kind="model"), "is a GGUF file with a model"),
    "empty": (_bytes(b""), "another kind"),
    "text": (_bytes(b"Once upon a time there was a text."), "another kind"),
    "old-truncated": (_bytes(GOOD[:30]), "ends at byte 30"),
    "old-values": (_bytes(struct.pack("<ii3sii", 1, 3, b"abc", 1, 2**31 - 1)), "declares 2147483647 values"),
    "old-no-values": (_bytes(struct.pack("<ii3sii", 1, 3, b"abc", 1, -5)), "declares -5 values"),
    "old-count": (_bytes(struct.pack("<i", 2) + GOOD[4:]), "declares .* values"),
    "old-name": (_bytes(GOOD[:39] + GOOD[4:]), "bytes long|ends at|another|declares"),
    "old-twice": (_bytes(struct.pack("<i", 2) + legacy(ENTRY, chunks=None)[4:] * 2), "twice"),
    "old-nan": (_bytes(legacy({"w": (1, [np.nan, 1.0])})), "NaN"),
    "old-calls": (_bytes(legacy({"w": (-1, [1.0])})), "-1 calls"),
    "old-tail": (_bytes(GOOD + b"more"), "4 bytes after its end"),
    "old-data-set": (_bytes(GOOD[:-2]), "ends at byte"),
}


@pytest.mark.parametrize("case", HOSTILE)
def test_files_that_are_not_to_be_trusted(case, tmp_path):
    make, told = HOSTILE[case]
    path = tmp_path / "i.gguf"
    make(path)
    with pytest.raises(CheckpointError, match=told) as error:
        read_importance([path], None)
    assert str(path) in str(error.value)


def test_every_truncation_of_the_older_form_is_refused(tmp_path):
    path = tmp_path / "i.dat"
    whole = {len(legacy(ENTRY, chunks=None)), len(GOOD), len(GOOD) - len(b"text.txt") - 4}
    for length in range(len(GOOD)):
        path.write_bytes(GOOD[:length])
        if length in whole:
            read_importance([path], None)
            continue
        with pytest.raises(CheckpointError):
            read_importance([path], None)


@pytest.mark.parametrize("what", ["missing", "folder"])
def test_what_is_no_file_is_refused(what, tmp_path):
    path = tmp_path if what == "folder" else tmp_path / "i.gguf"
    with pytest.raises(CheckpointError, match=r"no such file|is not a file"):
        read_importance([path], None)


@pytest.mark.parametrize("name", ["gpt_oss", "llama4", "granitemoe", "deepseek_v3"])
def test_models_whose_tensors_are_parts_or_joined(name, tmp_path):
    """Parts of a tensor on disk have its inputs, whichever way it lies there."""
    from gguf import GGUFReader
    from models.architectures import build

    more = {"intermediate_size_mlp": 512} if name == "llama4" else {}
    more |= {"moe_intermediate_size": 256, "kv_lora_rank": 256} if name == "deepseek_v3" else {}
    folder = build(name, tmp_path / name, hidden_size=256, intermediate_size=512, **more)
    text = tmp_path / "text.txt"
    text.write_text("It was the best of times, it was the worst of times; 1234567890 things were said. " * 40)
    qformats.imatrix(folder, tmp_path / "imatrix.gguf", text=str(text), chunk_size=64, chunks=3)
    entries = {
        t.name: t.data for t in GGUFReader(tmp_path / "imatrix.gguf").tensors if t.name.endswith(".in_sum2")
    }
    for stack, width in (
        ("ffn_gate_exps", 256),
        ("ffn_up_exps", 256),
        ("ffn_down_exps", 256 if more.get("moe_intermediate_size") else 512),
    ):
        found = entries[f"blk.1.{stack}.weight.in_sum2"]
        assert found.shape == (8 if name == "deepseek_v3" else 6, width)
        assert (found.sum(1) > 0).any()
    assert not any("attn_k_b" in entry or "attn_v_b" in entry for entry in entries)
    weighed, plain = tmp_path / "weighed.gguf", tmp_path / "plain.gguf"
    qformats.export(folder, weighed, format="gguf:q4_k", imatrix=tmp_path / "imatrix.gguf")
    qformats.export(folder, plain, format="gguf:q4_k")
    one, other = qformats.open(weighed).stored, qformats.open(plain).stored
    changed = {key for key, tensor in one.items() if not tensor.dequantize().equal(other[key].dequantize())}
    wanted = {f"blk.1.ffn_{part}_exps.weight" for part in ("gate", "up", "down")}
    wanted |= {"blk.1.attn_v_b.weight"} if name == "deepseek_v3" else set()
    assert wanted <= changed

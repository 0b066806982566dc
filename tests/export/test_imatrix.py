"""``export --imatrix``: importances reach each tensor's own columns, whatever the format, and are told."""

import json

import gguf
import numpy as np
import pytest
import torch
from cli.command import call
from models import architectures, moe
from oracles import ggml

import qformats
from qformats.errors import CheckpointError, ConfigError
from qformats.exporting.importance import write_importance
from qformats.interfaces import ColumnSums, Importance

TEXT = ("corpus.txt",)


def _importance(source, names, seed=0, **more):
    rng = np.random.default_rng(seed)
    sums = {
        name: ColumnSums(
            (rng.random((1, source.tensors[name].shape[-1])) ** 4 * 50).astype(np.float32).astype(np.float64),
            np.array([64.0]),
        )
        for name in names
    }
    return Importance(sums, datasets=TEXT, chunks=2, chunk_size=32, **more)


@pytest.fixture(scope="module")
def demo():
    return qformats.open("demo")


@pytest.fixture(scope="module")
def blocks(demo):
    return [name for name in demo.tensors if "_proj" in name]


@pytest.fixture(scope="module")
def file(demo, blocks, tmp_path_factory):
    path = tmp_path_factory.mktemp("imatrix") / "i.gguf"
    write_importance(_importance(demo, blocks), path, demo)
    return path


def _importances(file):
    """Importance by GGUF name, as llama-quantize computes it from the file."""
    tensors = {tensor.name: tensor.data for tensor in gguf.GGUFReader(file).tensors}
    return {
        name.removesuffix(".in_sum2"): values / tensors[name.replace(".in_sum2", ".counts")]
        for name, values in tensors.items()
        if name.endswith(".in_sum2")
    }


@pytest.mark.parametrize("kind", ["q4_0", "q5_1", "q4_k", "iq4_xs"])
def test_every_tensor_is_what_ggml_makes_of_it(kind, demo, file, tmp_path):
    """Also queries and keys, whose rows GGUF has in another order."""
    target = tmp_path / "m.gguf"
    report = qformats.export(demo, target, format=f"gguf:{kind}", pure=True, imatrix=file)
    plain = tmp_path / "plain.gguf"
    qformats.export(demo, plain, format="gguf:f32")
    dense = {tensor.name: tensor.data for tensor in gguf.GGUFReader(plain).tensors}
    importances, checked = _importances(file), 0
    for tensor in gguf.GGUFReader(target).tensors:
        if tensor.tensor_type.name.lower() != kind:
            continue
        values = dense[tensor.name].reshape(-1, int(tensor.shape[0]))
        weighed = importances.get(tensor.name)
        expected = ggml.quantize(kind, values, None if weighed is None else weighed[0])
        assert np.array_equal(tensor.data, expected), tensor.name
        checked += weighed is not None
    assert checked == 28
    assert report.unweighed == ("output.weight",)


def test_the_file_says_what_its_errors_were_weighed_by(demo, file, tmp_path):
    target = tmp_path / "m.gguf"
    qformats.export(demo, target, format="gguf:q4_0", imatrix=file)
    fields = gguf.GGUFReader(target).fields
    found = {
        key: (field.contents(), field.types[0].name) for key, field in fields.items() if "imatrix" in key
    }
    assert found == {
        "quantize.imatrix.file": (str(file)[:127], "STRING"),
        "quantize.imatrix.dataset": ("corpus.txt", "STRING"),
        "quantize.imatrix.entries_count": (28, "UINT32"),
        "quantize.imatrix.chunks_count": (2, "UINT32"),
    }
    record = json.loads((tmp_path / "m.gguf.qformats.json").read_text())
    assert record["importance"] == {
        "files": ["i.gguf"],
        "datasets": ["corpus.txt"],
        "entries": 28,
        "chunks": 2,
        "chunk_size": 32,
    }
    assert record["unweighed"] == ["output.weight"]


@pytest.mark.parametrize("format", ["gptq:4bit-128g", "bitsandbytes:nf4", "glm:int4"])
def test_any_grid_is_weighed(format, demo, blocks, file, tmp_path):
    report = qformats.export(demo, tmp_path / "m", format=format, quantizer="rtn", imatrix=file)
    qformats.export(demo, tmp_path / "plain", format=format, quantizer="rtn")
    weighed, plain = qformats.open(tmp_path / "m"), qformats.open(tmp_path / "plain")
    assert report.importance is not None
    better = total = 0
    for name in blocks:
        importance = torch.from_numpy(_importance(demo, blocks).sums[name].squares[0])
        exact = demo.read(name)
        lost = [
            ((model.read(name) - exact).double().square() * importance).sum() for model in (weighed, plain)
        ]
        better += bool(lost[0] < lost[1])
        total += 1
    assert better == total == 28


def test_several_files_are_added_up(demo, blocks, tmp_path):
    parts = [(seed, tmp_path / f"{seed}.gguf") for seed in (1, 2)]
    for seed, path in parts:
        write_importance(_importance(demo, blocks, seed), path, demo)
    report = qformats.export(
        demo, tmp_path / "m.gguf", format="gguf:q4_0", imatrix=[path for _, path in parts]
    )
    assert report.importance["chunks"] == 4
    stored = {t.name: t.data for t in gguf.GGUFReader(tmp_path / "m.gguf").tensors}["blk.3.ffn_up.weight"]
    name = "model.layers.3.mlp.up_proj.weight"
    total = sum(_importance(demo, blocks, seed).sums[name].squares[0] for seed, _ in parts)
    importance = (total / 128).astype(np.float32)
    assert np.array_equal(stored, ggml.quantize("q4_0", demo.read(name).numpy(), importance))


def test_a_gguf_file_is_weighed_by_its_own_names(demo, file, tmp_path):
    source = tmp_path / "f32.gguf"
    qformats.export(demo, source, format="gguf:f32")
    found = []
    for model, target in ((demo, tmp_path / "1.gguf"), (source, tmp_path / "2.gguf")):
        qformats.export(model, target, format="gguf:q4_0", imatrix=file)
        found.append({t.name: bytes(t.data) for t in gguf.GGUFReader(target).tensors})
    assert found[0] == found[1]


def test_tensors_that_are_rounded_again_are_weighed(demo, file, tmp_path):
    source = tmp_path / "q8.gguf"
    qformats.export(demo, source, format="gguf:q8_0", pure=True)
    qformats.export(source, tmp_path / "m.gguf", format="gguf:q4_0", pure=True, imatrix=file)
    values = qformats.open(source).in_own_names["blk.2.ffn_down.weight"].dequantize().numpy()
    stored = {t.name: t.data for t in gguf.GGUFReader(tmp_path / "m.gguf").tensors}["blk.2.ffn_down.weight"]
    assert np.array_equal(
        stored, ggml.quantize("q4_0", values, _importances(file)["blk.2.ffn_down.weight"][0])
    )


def test_what_keeps_its_values_is_not_touched(demo, file, tmp_path):
    source = tmp_path / "q4.gguf"
    qformats.export(demo, source, format="gguf:q4_0", pure=True)
    report = qformats.export(source, tmp_path / "m", format="gptq:4bit-32g", quantizer="rtn", imatrix=file)
    assert {t.exact for t in report.tensors if t.action == "transcoded"} <= {"yes", "always"}
    assert sum(t.action == "transcoded" for t in report.tensors) == 28


def _stacked(path, values):
    """A GGUF file with an architecture that is not known here, and experts in one tensor."""
    writer = gguf.GGUFWriter(path, arch="olmoe")
    writer.add_tensor("blk.0.ffn_up_exps.weight", values)
    writer.add_tensor("blk.0.attn_q.weight", values[0])
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


@pytest.mark.parametrize("before", ["F32", "Q8_0"])
@pytest.mark.parametrize("kind", ["q4_0", "q4_k"])
def test_stacked_experts_have_importances_of_their_own(kind, before, tmp_path, monkeypatch):
    rng = np.random.default_rng(0)
    values = rng.normal(0, 1, (5, 16, 256)).astype(np.float32)
    _stacked(tmp_path / "in.gguf", values)
    source = qformats.open(tmp_path / "in.gguf")
    if before == "Q8_0":
        qformats.export(source, tmp_path / "q8.gguf", format="gguf:q8_0", pure=True)
        source = qformats.open(tmp_path / "q8.gguf")
    name = "blk.0.ffn_up_exps.weight"
    values = source.in_own_names[name].dequantize().numpy()
    sums = ColumnSums(rng.random((5, 256)).astype(np.float32).astype(float) ** 4, np.array([1.0, 2, 0, 4, 8]))
    write_importance(Importance({name: sums}), tmp_path / "i.gguf", None)
    importances = sums.means(values.shape)
    # Slices that end within the stack.
    monkeypatch.setattr("qformats.exporting.fill.SLICE_WEIGHTS", 2 * 16 * 256)
    report = qformats.export(
        source, tmp_path / "m.gguf", format=f"gguf:{kind}", pure=True, imatrix=tmp_path / "i.gguf"
    )
    assert report.unweighed == ("blk.0.attn_q.weight",)
    stored = {t.name: t.data for t in gguf.GGUFReader(tmp_path / "m.gguf").tensors}[name]
    for expert in range(5):
        expected = ggml.quantize(kind, values[expert], importances[expert])
        assert np.array_equal(stored.reshape(5, 16, -1)[expert], expected), expert


def test_experts_of_a_folder_have_importances_of_their_own(tmp_path):
    source = qformats.open(moe.build("mixtral", tmp_path / "in"))
    names = [name for name in source.tensors if ".experts." in name]
    importance = _importance(source, names)
    write_importance(importance, tmp_path / "i.gguf", source)
    qformats.export(
        source, tmp_path / "m", format="gptq:4bit-32g", quantizer="rtn", imatrix=tmp_path / "i.gguf"
    )
    written = qformats.open(tmp_path / "m")
    name = "model.layers.1.block_sparse_moe.experts.2.w1.weight"
    weights = torch.from_numpy(importance.sums[name].means((96, 64))[0])
    expected = qformats.quantize(source.read(name), "gptq:4bit-32g", importance=weights)
    assert torch.equal(written.read(name), expected.dequantize())


def test_experts_of_a_folder_have_importances_of_their_own_in_a_file(tmp_path):
    source = qformats.open(architectures.build("mixtral", tmp_path / "in"))
    name = "model.layers.1.block_sparse_moe.experts.{}.w1.weight"
    known = [each for each in source.tensors if ".experts." in each and each != name.format(3)]
    importance = _importance(source, known)
    write_importance(importance, tmp_path / "i.gguf", source)
    report = qformats.export(source, tmp_path / "m.gguf", format="gguf:q4_0", imatrix=tmp_path / "i.gguf")
    assert not [each for each in report.unweighed if "_exps" in each]
    stored = {t.name: t.data for t in gguf.GGUFReader(tmp_path / "m.gguf").tensors}
    written = stored["blk.1.ffn_gate_exps.weight"]
    for expert in range(6):
        values = source.read(name.format(expert)).numpy()
        # No token has reached the fourth one.
        sums = importance.sums.get(name.format(expert))
        weights = np.ones(64, np.float32) if sums is None else sums.means((96, 64))[0]
        assert np.array_equal(written[expert], ggml.quantize("q4_0", values, weights)), expert


def test_importances_of_another_model_are_refused(demo, tmp_path):
    sums = {"blk.0.attn_q.weight": ColumnSums(np.ones((1, 128)), np.ones(1))}
    write_importance(Importance(sums), tmp_path / "i.gguf", None)
    with pytest.raises(ConfigError, match=r"blk\.0\.attn_q\.weight.*128 numbers.*256"):
        qformats.export(demo, tmp_path / "m.gguf", format="gguf:q4_0", imatrix=tmp_path / "i.gguf")
    assert [path.name for path in tmp_path.iterdir()] == ["i.gguf"]


def test_an_embedding_that_does_not_fit_is_not_mentioned(demo, blocks, tmp_path):
    """As by llama-quantize: nothing is ever multiplied with an embedding."""
    importance = _importance(demo, blocks)
    sums = {**importance.sums, "model.embed_tokens.weight": ColumnSums(np.ones((1, 7)), np.ones(1))}
    write_importance(importance.under(sums), tmp_path / "i.gguf", demo)
    report = qformats.export(demo, tmp_path / "m.gguf", format="gguf:q4_0", imatrix=tmp_path / "i.gguf")
    assert report.unweighed == ("output.weight",)


def test_plain_numbers_take_no_importance(demo, file, tmp_path):
    with pytest.raises(ConfigError, match="a quantized format"):
        qformats.export(demo, tmp_path / "m.gguf", format="gguf:f16", imatrix=file)
    assert list(tmp_path.iterdir()) == []


def test_mixes_that_need_importances_and_those_that_change_with_them(demo, file, tmp_path):
    with pytest.raises(ConfigError, match="without an importance matrix"):
        qformats.export(demo, tmp_path / "m.gguf", format="gguf:q2_k_s")
    report = qformats.export(demo, tmp_path / "m.gguf", format="gguf:q2_k_s", imatrix=file)
    assert "gguf:q2_k" in report.types


def test_the_command_tells(file, tmp_path, capsys):
    found = call(
        capsys, "export", "demo", "--format", "gguf:q4_0", "--imatrix", file, "-o", tmp_path / "m.gguf"
    )
    assert found.code == 0, found.err
    told = " ".join(found.out.split())
    assert "errors are weighed by" in told
    assert "28 entries, 2 chunks of 32 tokens from corpus.txt" in told
    assert "no importance for 1 tensor: output.weight" in told
    planned = call(
        capsys,
        "export",
        "demo",
        "--format",
        "gguf:q4_0",
        "--imatrix",
        file,
        "--dry-run",
        "-o",
        tmp_path / "n.gguf",
    )
    assert "errors are weighed by" in " ".join(planned.out.split())


def test_an_interrupted_export_is_not_continued_with_other_importances(demo, blocks, file, tmp_path):
    from qformats.exporting import Recipe, make_plan

    write_importance(_importance(demo, blocks, 5), tmp_path / "other.gguf", demo)
    plans = [
        make_plan(demo, tmp_path / "m.gguf", Recipe("gguf:q4_0", imatrix=(str(path),)), {})
        for path in (file, file, tmp_path / "other.gguf")
    ]
    first, again, other = (plan.identity([]) for plan in plans)
    assert first == again != other


def test_a_missing_file_is_refused(demo, tmp_path):
    with pytest.raises(CheckpointError, match="no such file"):
        qformats.export(demo, tmp_path / "m.gguf", format="gguf:q4_0", imatrix=tmp_path / "i.gguf")


def test_layers_that_are_calibrated_are_weighed_by_their_own_inputs(demo, file, tmp_path, capsys):
    options = ["--samples", "2", "--sequence-length", "32", "-Q", "device=cpu", "-Q", "correct=no"]
    written = []
    for more in ([], ["--imatrix", file]):
        target = tmp_path / "m.gguf"
        arguments = ["export", "demo", "--format", "gguf:q4_0", "--quantizer", "gptq", *options, *more]
        found = call(capsys, *arguments, "-o", target, "--force")
        assert found.code == 0, found.err
        written.append({t.name: bytes(t.data) for t in gguf.GGUFReader(target).tensors})
    assert written[0] == written[1]
    told = " ".join(found.out.split())
    assert "but not those of layers that were calibrated" in told
    # The output layer is calibrated too, and the embedding needs no importance.
    assert "no importance for" not in told

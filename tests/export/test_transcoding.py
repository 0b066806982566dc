"""Quantized models into other quantized formats: which values stay, which do not, and what is told about it."""

import json
from pathlib import Path

import gguf
import pytest
import torch
from cli.command import call
from models.records import forget
from safetensors.torch import load_file, save_file

import qformats
from qformats.errors import InexactExportError
from qformats.interfaces.rows import cut
from qformats.registry import registry

DENSE = ("model.embed_tokens.weight", "lm_head.weight")


def values(path: Path) -> dict[str, torch.Tensor]:
    """Every tensor of a model as float32, by canonical name."""
    model = qformats.open(path)
    return {name: model.read(name) for name in model.tensors}


def assert_equal(before: dict[str, torch.Tensor], after: dict[str, torch.Tensor]) -> None:
    assert before.keys() == after.keys()
    for name, value in before.items():
        assert torch.equal(value, after[name]), name


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    """The demo model in a format, made once."""
    folder = tmp_path_factory.mktemp("made")

    def make(format: str) -> Path:
        target = folder / (format.replace(":", "-") + (".gguf" if format.startswith("gguf") else ""))
        if not target.exists():
            # The output layer in q6_k of a GGUF file has scales that few others hold.
            output = "q8_0" if format.startswith("gguf:q") else None
            qformats.export("demo", target, format=format, quantizer="rtn", output_type=output)
        return target

    return make


EXACT = [
    ("glm:int4", "gguf:q4_0"),
    ("glm:int4", "gguf:q5_0"),
    ("glm:int4", "gguf:q8_0"),
    ("glm:int8", "gguf:q8_0"),
    ("glm:int4", "glm:int8"),
    ("glm:int4", "gguf:q4_1"),
    ("glm:int8", "bitsandbytes:int8"),
    ("gguf:q4_0", "gguf:q5_0"),
    ("gguf:q4_0", "gguf:q8_0"),
    ("gguf:q4_1", "gguf:q5_1"),
    ("gguf:q5_0", "gguf:q8_0"),
    ("bitsandbytes:nf4", "bitsandbytes:nf4-bf16"),
    ("bitsandbytes:nf4", "bitsandbytes:nf4-bs32"),
    ("bitsandbytes:nf4-dq", "bitsandbytes:nf4"),
    ("bitsandbytes:fp4-dq", "bitsandbytes:fp4"),
]


@pytest.mark.parametrize(("before", "after"), EXACT, ids=[f"{a}-{b}" for a, b in EXACT])
def test_every_value_stays(made, before, after, tmp_path):
    source = made(before)
    target = tmp_path / ("out.gguf" if after.startswith("gguf") else "out")
    output = "q8_0" if before.startswith("gguf:q") else None
    report = qformats.export(source, target, format=after, output_type=output, require_exact=True)
    assert_equal(values(source), values(target))
    moved = [t for t in report.tensors if t.source_format == before]
    # Of a GGUF source the head and the embedding are quantized too, and folders keep those plain.
    moved = [t for t in moved if t.format == after]
    assert len(moved) >= 28
    assert {(t.action, t.exact, t.exact_share, t.relative_error) for t in moved} == {
        ("transcoded", "yes", 1.0, 0.0)
    }


def test_the_way_back_where_one_scale_serves_the_row(made, tmp_path):
    """int4 -> q4_0 -> int4 ends in the bytes it began with, and so does int8 -> bitsandbytes -> int8."""
    for format, between in (("glm:int4", "gguf:q4_0"), ("glm:int8", "bitsandbytes:int8")):
        source = made(format)
        other = tmp_path / (f"{between[:4]}.gguf" if between.startswith("gguf") else between[:4])
        qformats.export(source, other, format=between, require_exact=True)
        back = tmp_path / f"back-{between[:4]}"
        qformats.export(other, back, format=format, require_exact=True)
        first, last = load_file(source / "model.safetensors"), load_file(back / "model.safetensors")
        for name, tensor in first.items():
            if name.endswith(".weight") and tensor.dtype == torch.int8:
                assert torch.equal(tensor, last[name]), name
                assert torch.equal(first[f"{name}_scale"], last[f"{name}_scale"]), name


def test_gguf_readers_see_the_same_values(made, tmp_path):
    """The independent decoder of the gguf package, on the file transcoded from int4."""
    target = tmp_path / "out.gguf"
    source = made("glm:int4")
    qformats.export(source, target, format="gguf:q4_0", require_exact=True)
    stored = load_file(source / "model.safetensors")
    name = "model.layers.3.mlp.down_proj.weight"
    packed = stored[name].to(torch.int16)
    codes = torch.stack([packed >> 4, ((packed & 15) ^ 8) - 8], -1).reshape(len(packed), -1)
    expected = codes.float() * stored[f"{name}_scale"].float()[:, None]
    (found,) = (t for t in gguf.GGUFReader(target).tensors if t.name == "blk.3.ffn_down.weight")
    assert torch.equal(torch.from_numpy(gguf.quants.dequantize(found.data, found.tensor_type)), expected)


def test_dense_tensors_stay_dense(made, tmp_path):
    target = tmp_path / "out.gguf"
    report = qformats.export(made("glm:int4"), target, format="gguf:q4_0")
    kinds = {t.source_name: (t.format, t.note) for t in report.tensors}
    for name in DENSE:
        assert kinds[name] == ("gguf:bf16", "not quantized in the source")
    asked = qformats.export(
        made("glm:int4"), tmp_path / "asked.gguf", format="gguf:q4_0", output_type="q8_0", require_exact=False
    )
    assert {t.source_name: t.format for t in asked.tensors}["lm_head.weight"] == "gguf:q8_0"


def test_what_does_not_fit_is_rounded_and_measured(made, tmp_path):
    source, target = made("bitsandbytes:nf4"), tmp_path / "out.gguf"
    report = qformats.export(source, target, format="gguf:q8_0")
    before, after = values(source), values(target)
    rounded = [t for t in report.tensors if t.action == "requantized"]
    assert len(rounded) == 28
    for tensor in rounded:
        old, new = before[tensor.source_name].double(), after[tensor.source_name].double()
        error = float((new - old).square().sum().sqrt() / old.square().sum().sqrt())
        assert tensor.relative_error == pytest.approx(error, rel=1e-6)
        assert tensor.max_error == pytest.approx(float((new - old).abs().max()), rel=1e-6)
        assert (tensor.exact, tensor.exact_share) == ("no", 0.0)
        assert "equally spaced" in tensor.reason
    kept = json.loads((tmp_path / "out.gguf.qformats.json").read_text())
    first = next(t for t in kept["tensors"] if t["action"] == "requantized")
    assert first["relative_error"] > 0
    assert "equally spaced" in first["reason"]


def test_codes_stay_where_only_scales_must_be_rounded(made, tmp_path):
    """LLM.int8() from a bf16 model: hardly any SCB / 127 is a float16 number, and the codes are good as they are."""
    source, target = made("bitsandbytes:int8"), tmp_path / "out"
    report = qformats.export(source, target, format="glm:int8")
    first, last = load_file(source / "model.safetensors"), load_file(target / "model.safetensors")
    for tensor in (t for t in report.tensors if t.format == "glm:int8"):
        assert torch.equal(first[tensor.name], last[tensor.name])
        assert 0 < tensor.relative_error < 2**-11
        assert "scales are rounded, codes are kept" in tensor.reason


def test_mixed_rows_keep_what_they_can(made, tmp_path):
    """Of a tensor larger than a slice, slices that fit stay; the report tells the share."""
    from qformats.exporting.fill import SLICE_WEIGHTS

    columns = 1024
    rows = SLICE_WEIGHTS // columns
    weight = torch.randn(2 * rows, columns, generator=torch.Generator().manual_seed(0)).half()
    packed = qformats.packer("gguf:q8_0").encode_reference(weight)
    # One scale per row fits only in the first slice, where the rows are made so.
    same = qformats.packer("glm:int8").encode_reference(weight[:rows])
    first = qformats.pack(qformats.packer("gguf:q8_0").represent(qformats.unpack(same)), "gguf:q8_0")
    packed.fields["blocks"][:rows] = first.fields["blocks"]
    source = _one_tensor(tmp_path, packed)
    report = qformats.export(source, tmp_path / "out", format="glm:int8")
    (tensor,) = (t for t in report.tensors if t.format == "glm:int8")
    assert (tensor.action, tensor.exact, tensor.exact_share) == ("requantized", "no", 0.5)
    with pytest.raises(InexactExportError, match="cannot become glm:int8 unchanged"):
        qformats.export(source, tmp_path / "never", format="glm:int8", require_exact=True)
    assert not (tmp_path / "never").exists()


def _one_tensor(folder: Path, packed: qformats.PackedTensor) -> qformats.Checkpoint:
    class One(qformats.Checkpoint):
        path, name, container = folder, "one", "huggingface"
        architecture = "llama"
        files = ()

        def __init__(self) -> None:
            stored = qformats.StoredTensor(
                "model.layers.0.mlp.up_proj.weight",
                packed.shape,
                packed.packer,
                packed.nbytes,
                folder / "file",
                lambda start, stop: cut(packed, start, stop),
            )
            self.tensors = {stored.name: stored}

        @property
        def config(self):
            return {"model_type": "unlisted"}

        def tokenizer_files(self):
            return {}

    return One()


def test_the_plan_answers_before_anything_is_read(capsys, made, tmp_path):
    """always, never, needs the data: from headers; --check-exact settles the last without writing."""

    def told(source: Path, format: str, *more: str) -> set[str]:
        result = call(capsys, "export", source, "-f", format, "-o", tmp_path / "out", "--json", *more)
        assert result.code == 0, result.err
        tensors = json.loads(result.out)["tensors"]
        return {t["exact"] for t in tensors if t["action"] in ("transcoded", "requantized")}

    assert told(made("glm:int4"), "gguf:q4_0", "--dry-run") == {"always"}
    assert told(made("bitsandbytes:nf4"), "gguf:q4_0", "--dry-run") == {"never"}
    assert told(made("gguf:q4_0"), "glm:int4", "--dry-run") == {"needs the data"}
    assert told(made("gguf:q4_0"), "glm:int4", "--check-exact") == {"no"}
    transcoded = tmp_path / "transcoded.gguf"
    qformats.export(made("glm:int4"), transcoded, format="gguf:q4_0")
    assert told(transcoded, "glm:int4", "--check-exact") == {"yes"}
    assert not (tmp_path / "out").exists()


def test_require_exact_names_tensors_and_reasons(capsys, made, tmp_path):
    target = tmp_path / "out"
    result = call(capsys, "export", made("gguf:q4_0"), "-f", "glm:int4", "-o", target, "--require-exact")
    assert result.code != 0
    assert "tensors cannot become glm:int4 unchanged: model.layers.0." in result.err
    assert "--require-exact" in result.err
    assert result.err.count("\n") == 1
    assert list(tmp_path.iterdir()) == []


def test_the_summary_tells_what_stayed_and_what_the_rest_lost(capsys, made, tmp_path):
    result = call(capsys, "export", made("glm:int4"), "-f", "gguf:q4_0", "-o", tmp_path / "a.gguf")
    assert "28 quantized tensors kept every value" in result.out
    result = call(capsys, "export", made("gguf:q4_0"), "-f", "glm:int4", "-o", tmp_path / "b")
    assert "rounded again, the first because" in result.out
    assert "; relative error " in result.out


def test_a_resumed_transcode_reports_what_the_first_run_measured(made, tmp_path, monkeypatch):
    from qformats.exporting import Recipe, make_plan
    from qformats.exporting.engines import local as engine
    from qformats.exporting.run import execute

    def plan(name: str):
        source = qformats.open(made("bitsandbytes:nf4"))
        return make_plan(source, tmp_path / name, Recipe("gguf:q5_0"), {})

    whole = execute(plan("whole.gguf"))
    real = engine.convert
    left = [10]

    def stopping(*arguments):
        left[0] -= 1
        if left[0] < 0:
            raise KeyboardInterrupt
        return real(*arguments)

    monkeypatch.setattr(engine, "convert", stopping)
    with pytest.raises(KeyboardInterrupt):
        execute(plan("part.gguf"), keep_partial=True, workers=1)
    monkeypatch.setattr(engine, "convert", real)
    resumed = execute(plan("part.gguf"))
    assert resumed.resumed > 0
    assert resumed.tensors == whole.tensors
    assert (tmp_path / "part.gguf").read_bytes() == (tmp_path / "whole.gguf").read_bytes()


def test_same_format_same_bytes(made, tmp_path):
    for format in ("glm:int4", "bitsandbytes:nf4-dq", "bitsandbytes:int8"):
        source, target = made(format), tmp_path / format.replace(":", "-")
        report = qformats.export(source, target, format=format, require_exact=True)
        assert {t.action for t in report.tensors} == {"copied"}
        first, last = load_file(source / "model.safetensors"), load_file(target / "model.safetensors")
        assert first.keys() == last.keys()
        assert all(torch.equal(first[name], last[name]) for name in first)


def test_casts_that_round_are_refused_too(tmp_path):
    folder = tmp_path / "f32"
    qformats.export("demo", folder, format="dense:f32", require_exact=True)
    state = load_file(folder / "model.safetensors")
    state["model.norm.weight"][0] = 1.00001
    save_file(state, folder / "model.safetensors", metadata={"format": "pt"})
    forget(folder)
    with pytest.raises(InexactExportError, match=r"model\.norm\.weight \(bf16 changes 1 of 256 values\)"):
        qformats.export(folder, tmp_path / "bf16", format="dense:bf16", require_exact=True)


def test_one_row_that_does_not_fit_costs_its_neighbours_little(tmp_path):
    """One weight of 127 among levels of four bits: the rows around it are rounded, the others keep every value."""
    generator = torch.Generator().manual_seed(0)
    codes = torch.randint(-7, 8, (1024, 1024), generator=generator, dtype=torch.int8)
    codes[300, 5] = 127
    scale = torch.rand(1024, generator=generator).add(0.5).half()
    fields = {"weight": codes, "weight_scale": scale}
    source = _one_tensor(tmp_path, qformats.PackedTensor(qformats.packer("glm:int8"), (1024, 1024), fields))
    report = qformats.export(source, tmp_path / "out", format="glm:int4")
    (tensor,) = (t for t in report.tensors if t.format == "glm:int4")
    assert 1 - 2 / 1024 <= tensor.exact_share < 1
    assert (tensor.action, tensor.exact) == ("requantized", "no")
    before, after = codes.float() * scale.float()[:, None], qformats.open(tmp_path / "out")
    changed = (after.read(tensor.name) != before).any(1).nonzero().flatten().tolist()
    assert 300 in changed
    assert set(changed) <= {300, 301}


def test_where_no_row_fits_few_attempts_are_made(tmp_path, monkeypatch):
    from qformats.exporting.transcode import transcode

    packer, source = qformats.packer("glm:int4"), qformats.packer("gguf:q4_0")
    part = source.encode_reference(torch.randn(512, 1024))
    calls = []
    real = type(packer).represent
    monkeypatch.setattr(
        type(packer), "represent", lambda self, quantized: calls.append(1) or real(self, quantized)
    )
    _, measure = transcode(part, packer, registry().quantizer("rtn"))
    assert measure.exact == 0
    assert len(calls) < 20


def test_tiny_scales_are_not_kept_at_the_price_of_the_values():
    """A scale below the normal float16 numbers loses more by rounding than the codes are worth."""
    from qformats.exporting.transcode import transcode

    source, packer = qformats.packer("glm:int8-f32"), qformats.packer("glm:int8")
    codes = torch.randint(-127, 128, (4, 64), dtype=torch.int8)
    codes[:, 0] = 127
    part = qformats.PackedTensor(source, (4, 64), {"weight": codes, "weight_scale": torch.full((4,), 8.8e-8)})
    packed, measure = transcode(part, packer, registry().quantizer("rtn"))
    again = packer.encode_reference(source.dequantize(part))
    assert all(torch.equal(packed.fields[name], value) for name, value in again.fields.items())
    assert "codes are kept" not in measure.reason


def test_float64_is_not_float32(tmp_path):
    folder = tmp_path / "f64"
    qformats.export("demo", folder, format="dense:f32")
    state = load_file(folder / "model.safetensors")
    state["model.norm.weight"] = torch.full((256,), 1 / 3, dtype=torch.float64)
    save_file(state, folder / "model.safetensors", metadata={"format": "pt"})
    forget(folder)
    with pytest.raises(InexactExportError, match=r"model\.norm\.weight \(f32 changes 256 of 256 values\)"):
        qformats.export(folder, tmp_path / "f32", format="dense:f32", require_exact=True)


def test_values_beyond_the_target_are_a_reason(capsys, tmp_path):
    folder = tmp_path / "large"
    qformats.export("demo", folder, format="dense:f32")
    state = load_file(folder / "model.safetensors")
    state["model.norm.weight"][7] = 1e6
    save_file(state, folder / "model.safetensors", metadata={"format": "pt"})
    forget(folder)
    result = call(
        capsys, "export", folder, "-f", "dense:f16", "-o", tmp_path / "f16", "--check-exact", "--json"
    )
    assert result.code == 0, result.err
    told = {t["name"]: t["reason"] for t in json.loads(result.out)["tensors"]}
    assert "f16" in told["model.norm.weight"]
    with pytest.raises(InexactExportError, match=r"model\.norm\.weight"):
        qformats.export(folder, tmp_path / "f16", format="dense:f16", require_exact=True)


def test_checking_and_requiring_read_the_model_once(capsys, made, tmp_path, monkeypatch):
    from qformats.exporting import check

    read = []
    real = check.why_not
    monkeypatch.setattr(check, "why_not", lambda *arguments: read.append(1) or real(*arguments))
    call(capsys, "export", made("gguf:q4_0"), "-f", "glm:int4", "-o", tmp_path / "a", "--check-exact")
    once = len(read)
    result = call(
        capsys,
        *("export", made("gguf:q4_0"), "-f", "glm:int4", "-o", tmp_path / "a"),
        *("--check-exact", "--require-exact"),
    )
    assert result.code != 0
    assert len(read) == 2 * once

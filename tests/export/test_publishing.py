"""A publisher's run: the bytes of separate exports in one read of the source, under the hub's names."""

from __future__ import annotations

import json
import shutil
from collections import Counter
from dataclasses import replace
from hashlib import sha256
from pathlib import Path

import pytest
from cli.command import call
from models import glm_goldens, tiny

import qformats
from qformats.errors import ConfigError, OutputError, QFormatsError
from qformats.exporting import shared
from qformats.exporting.shared import SharedReads

FORMATS = ["gguf:q4_k_m", "gguf:q8_0", "gguf:f16", "gptq:4bit-128g", "nf4", "nf4-dq", "glm:int4", "dense:f16"]
NAMES = {
    "gguf:q4_k_m": "demo-llama-Q4_K_M.gguf",
    "gguf:q8_0": "demo-llama-Q8_0.gguf",
    "gguf:f16": "demo-llama-F16.gguf",
    "gptq:4bit-128g": "demo-llama-GPTQ-4bit-128g",
    "nf4": "demo-llama-bnb-nf4",
    "nf4-dq": "demo-llama-bnb-nf4-dq",
    "glm:int4": "demo-llama-int4",
    "dense:f16": "demo-llama-F16",
}


def content(folder: Path) -> dict[str, str]:
    return {
        file.relative_to(folder).as_posix(): sha256(file.read_bytes()).hexdigest()
        for file in folder.rglob("*")
        if file.is_file() and file.name not in ("README.md", "SHA256SUMS")
    }


def separately(model, folder: Path, **options) -> dict[str, str]:
    """What separate exports write under the same names."""
    for format in options.pop("formats"):
        qformats.export(model, folder / NAMES[format], format=format, **options)
    return content(folder)


class Counted:
    """Counts what is read of a model: rows of each tensor in the file."""

    def __init__(self, model) -> None:
        self.rows: Counter[str] = Counter()
        self.model = qformats.open(model).reading_through(self._counting)
        self.tensors = dict(self.model.in_own_names)

    def _counting(self, tensor):
        def load(start, stop):
            self.rows[tensor.name] += stop - start
            return tensor.load(start, stop)

        return replace(tensor, load=load)

    def once(self) -> bool:
        return self.rows == {name: tensor.rows for name, tensor in self.tensors.items()}


@pytest.fixture(scope="module")
def demo_q8(tmp_path_factory) -> Path:
    target = tmp_path_factory.mktemp("quantized") / "demo-llama.gguf"
    qformats.export("demo", target, format="gguf:q8_0")
    return target


@pytest.mark.parametrize("size", [1 << 15, 1 << 22], ids=["slices", "whole"])
def test_separate_exports_write_the_same_bytes_and_the_source_is_read_once(tmp_path, monkeypatch, size):
    """Heads are of 32 rows: slices of 100 rows make the rearranged ones of GGUF overlap those of the others."""
    from qformats.exporting import fill

    monkeypatch.setattr(fill, "SLICE_WEIGHTS", size)
    monkeypatch.setattr(shared, "SLICE_WEIGHTS", 100 * 256 if size < 1 << 20 else size)
    counted = Counted("demo")
    report = qformats.publish(counted.model, tmp_path / "one", formats=FORMATS, quantizer="rtn", workers=2)
    assert [output.name for output in report.outputs] == list(NAMES.values())
    assert counted.once()
    expected = separately("demo", tmp_path / "many", formats=FORMATS, quantizer="rtn")
    assert content(tmp_path / "one") == expected


def test_separate_exports_read_the_source_each(tmp_path):
    """What the count above would show if reads were not shared."""
    counted = Counted("demo")
    for format in ("gguf:q8_0", "dense:f16"):
        qformats.export(counted.model, tmp_path / NAMES[format], format=format)
    assert set(counted.rows.values()) == {2 * tensor.rows for tensor in counted.tensors.values()}


def test_quantized_source_is_decoded_once(demo_q8, tmp_path, monkeypatch):
    """A GGUF file gives GGUF outputs its own rows, and the others rows in Transformers' order: both from one read."""
    counted = Counted(demo_q8)
    formats = ["gguf:q4_k_m", "gguf:q8_0", "gptq:4bit-128g", "glm:int4", "dense:f16"]
    packer = type(qformats.packer("gguf:q8_0"))
    original, decoded = packer.dequantize, Counter()

    def dequantize(self, packed):
        if self.name == "gguf:q8_0":
            decoded[packed.shape] += 1
        return original(self, packed)

    monkeypatch.setattr(packer, "dequantize", dequantize)
    qformats.publish(counted.model, tmp_path / "one", formats=formats, quantizer="rtn", workers=2)
    monkeypatch.undo()
    assert counted.once()
    # The last matrix of each layer, for three outputs. (Halves of a tensor that may be kept in part are others.)
    assert decoded[256, 1024] == 4
    expected = separately(demo_q8, tmp_path / "many", formats=formats, quantizer="rtn")
    assert content(tmp_path / "one") == expected


def chatglm2(folder: Path) -> None:
    from models import chatglm, glm

    made = chatglm.model(rope_ratio=50, vocab_size=glm.SIZE, intermediate_size=96)
    chatglm.save(made, folder, bits=8, container="bin", shards=2)
    glm.tokenizer("chatglm2", folder)


def chatglm_6b(folder: Path) -> None:
    glm_goldens.chatglm_6b(folder, 4)


def glm_130b(folder: Path) -> None:
    glm_goldens.glm_130b(folder, 8)


def gpt2(folder: Path) -> None:
    tiny.build("gpt2", folder, bin_shards=3)


def qwen2_tied(folder: Path) -> None:
    tiny.build("qwen2", folder, "bfloat16", max_shard_size="60KB")


@pytest.mark.parametrize(
    ("make", "formats"),
    [
        (chatglm2, ["glm:int4", "gguf:q8_0", "gguf:f16", "dense:f16"]),
        (chatglm_6b, ["glm:int8", "dense:f16"]),
        (glm_130b, ["glm:int4", "dense:f16"]),
        (gpt2, ["gguf:q8_0", "nf4-dq", "glm:int8", "dense:bf16"]),
        (qwen2_tied, ["gguf:q4_0", "gguf:bf16", "nf4", "dense:f32"]),
    ],
    ids=lambda value: getattr(value, "__name__", ""),
)
def test_other_models(tmp_path, make, formats):
    """Packed, split, transposed, tied, with joined matrices, in containers of their own, in pickles."""
    model = tmp_path / "model"
    make(model)
    counted = Counted(model)
    report = qformats.publish(counted.model, tmp_path / "one", formats=formats)
    # What no output holds is not read at all.
    assert counted.rows == {name: counted.tensors[name].rows for name in counted.rows}
    assert len(counted.rows) > 10
    for format, output in zip(formats, report.outputs, strict=True):
        qformats.export(model, tmp_path / "many" / output.name, format=format)
    assert content(tmp_path / "one") == content(tmp_path / "many")


def test_importances_and_options_reach_every_format_that_has_them(tmp_path):
    imatrix = tmp_path / "imatrix.gguf"
    qformats.imatrix("demo", imatrix, chunks=2, chunk_size=32, device="cpu")
    more = {"imatrix": imatrix, "tensor_types": {"layers.0.mlp.up_proj": "bf16"}, "pure": True}
    formats = ["gguf:q4_k_m", "nf4"]
    # An iterator gives its files a single time.
    once = {**more, "imatrix": iter([imatrix])}
    report = qformats.publish("demo", tmp_path / "one", formats=[*formats, "dense:f16"], **once)
    assert [output.report.importance is None for output in report.outputs] == [False, False, True]
    expected = separately("demo", tmp_path / "many", formats=formats, **more)
    assert expected.items() <= content(tmp_path / "one").items()
    with pytest.raises(ConfigError, match="a quantized format among them, for the importance matrix"):
        qformats.publish("demo", tmp_path / "none", formats=["dense:f16", "gguf:f16"], imatrix=imatrix)
    assert not (tmp_path / "none").exists()


def test_each_format_is_calibrated_by_itself(tmp_path):
    """Codes of earlier blocks change the inputs of later ones, so that nothing of a calibration can be shared."""
    options = {"samples": "4", "sequence-length": "64", "device": "cpu", "rounds": "1"}
    formats = ["gguf:q4_k_m", "gptq:4bit-128g"]
    more = {"quantizer": "gptq", "quantizer_options": options}
    report = qformats.publish("demo", tmp_path / "one", formats=formats, **more)
    assert all(output.report.calibration.startswith("4 x 64 tokens") for output in report.outputs)
    assert content(tmp_path / "one") == separately("demo", tmp_path / "many", formats=formats, **more)
    assert not [path for path in (tmp_path / "one").iterdir() if path.name.startswith(".")]


def test_a_log_is_of_one_calibration(tmp_path):
    options = {"log": str(tmp_path / "log.jsonl"), "samples": "1", "sequence-length": "32"}
    with pytest.raises(ConfigError, match=r"^log: .*one format that is calibrated"):
        qformats.publish(
            "demo", tmp_path / "out", formats=["gptq", "gptq:8bit-128g"], quantizer_options=options
        )
    assert list(tmp_path.iterdir()) == []


def test_what_is_kept_for_others_is_bounded(monkeypatch):
    """Pieces that were used longest ago are read again."""
    monkeypatch.setattr(shared, "SLICE_WEIGHTS", 16 * 256)
    monkeypatch.setattr(shared, "_KEPT", 4 * 16 * 256)
    counted = Counted("demo")
    reads = SharedReads()
    tensor = reads.of(counted.model).tensors["model.embed_tokens.weight"]
    for start in range(0, 2048, 16):
        tensor.read(start, start + 16)
        assert sum(reads._weights.values()) <= 4 * 16 * 256
        assert reads._weights.keys() == reads._kept.keys()
    assert counted.rows[tensor.name] == 2048
    tensor.read(2000, 2048)
    assert counted.rows[tensor.name] == 2048
    tensor.read(0, 16)
    assert counted.rows[tensor.name] == 2064
    # A whole tensor may be larger; it is kept until something else is read.
    tensor.read()
    assert list(reads._weights.values()) == [2048 * 256]


def test_reads_that_fail_are_told_to_all_and_tried_again(llama):
    model = qformats.open(llama)
    broken = [OSError("gone"), OSError("gone")]

    def failing(tensor):
        def load(start, stop):
            if broken:
                raise broken.pop()
            return tensor.load(start, stop)

        return replace(tensor, load=load)

    tensor = SharedReads().of(model.reading_through(failing)).tensors["lm_head.weight"]
    for _ in range(2):
        with pytest.raises(OSError, match="gone"):
            tensor.read()
    assert bool((tensor.dequantize() == model.read("lm_head.weight")).all())


def test_other_files_stay(llama, tmp_path):
    folder = tmp_path / "out"
    (folder / "notes").mkdir(parents=True)
    (folder / "notes" / "mine.txt").write_text("mine")
    (folder / "llama-other.gguf").write_bytes(b"other")
    qformats.publish(llama, folder, formats=["gguf:q8_0", "dense:f16"])
    assert (folder / "notes" / "mine.txt").read_text() == "mine"
    assert (folder / "llama-other.gguf").read_bytes() == b"other"
    assert "llama-other.gguf" not in (folder / "SHA256SUMS").read_text()


@pytest.mark.parametrize("name", ["README.md", "SHA256SUMS", "llama-Q8_0.gguf"])
def test_nothing_that_is_there_is_replaced_without_force(llama, tmp_path, name):
    (tmp_path / name).write_text("mine")
    with pytest.raises(OutputError, match=rf"{name}: exists already.*force"):
        qformats.publish(llama, tmp_path, formats=["gguf:q8_0", "dense:f16"])
    assert [path.name for path in tmp_path.iterdir()] == [name]
    assert (tmp_path / name).read_text() == "mine"
    qformats.publish(llama, tmp_path, formats=["gguf:q8_0", "dense:f16"], force=True)
    assert (tmp_path / name).read_bytes()[:4] != b"mine"


@pytest.mark.parametrize(
    ("formats", "says"),
    [
        (["gguf:q8_0", "q8_0"], "found gguf:q8_0 twice; expected one or more formats, each once"),
        ([], "expected one or more formats, each once"),
        (["gguf:q8_0", "glm:int4-tp2"], "glm:int4-tp2"),
        (
            ["gguf:q8_0", "gguf:q2_k_s"],
            "gguf:q2_k_s cannot be had like this, so none of the 2 formats is written",
        ),
        (["gguf:q8_0", "gguf:q9_0"], "no format 'gguf:q9_0'"),
    ],
)
def test_formats_that_cannot_be_had_are_refused_before_anything_is_written(tmp_path, formats, says):
    with pytest.raises(QFormatsError) as caught:
        qformats.publish("demo", tmp_path / "out", formats=formats)
    assert says in str(caught.value)
    assert list(tmp_path.iterdir()) == []


def test_model_whose_shapes_do_not_fit_one_format(capsys, llama, tmp_path):
    done = call(capsys, "export", llama, "-f", "gguf:q8_0", "-f", "gptq:4bit-128g", "--output-tensor-type", "q8_0",
                "-o", tmp_path / "out")  # fmt: skip
    assert done.code == 2
    assert "gptq:4bit-128g cannot be had like this, so none of the 2 formats is written." in done.err
    assert list(tmp_path.iterdir()) == []


def test_names_that_collide(llama, tmp_path, monkeypatch):
    """Also where a file system does not tell cases apart."""
    family = type(qformats.registry.registry().family(qformats.packer("glm:int4")))
    monkeypatch.setattr(family, "hub_name", lambda self, packer: "BNB-NF4")
    with pytest.raises(OutputError, match="would be the name of both bitsandbytes:nf4 and glm:int4"):
        qformats.publish(llama, tmp_path / "out", formats=["nf4", "glm:int4"])
    assert list(tmp_path.iterdir()) == []


def test_several_types_of_one_family(capsys, llama, tmp_path):
    arguments = (
        "export",
        llama,
        "--format",
        "gguf",
        "--type",
        "q8_0",
        "--type",
        "q4_0",
        "-o",
        tmp_path / "out",
    )
    assert call(capsys, *arguments).code == 0
    names = sorted(path.name for path in (tmp_path / "out").glob("*.gguf"))
    assert names == ["llama-Q4_0.gguf", "llama-Q8_0.gguf"]


def test_one_format_with_a_card(capsys, llama, tmp_path):
    """A folder as of several formats, with the bytes of an export by itself."""
    done = call(capsys, "export", llama, "-f", "gguf:q8_0", "--card", "-o", tmp_path / "out")
    assert done.code == 0
    names = {path.name for path in (tmp_path / "out").iterdir()}
    assert names == {"README.md", "SHA256SUMS", "llama-Q8_0.gguf", "llama-Q8_0.gguf.qformats.json"}
    assert "out: 1 format, " in done.out
    assert "| `gguf:q8_0` |" in (tmp_path / "out" / "README.md").read_text()
    call(capsys, "export", llama, "-f", "gguf:q8_0", "-o", tmp_path / "alone.gguf")
    assert (tmp_path / "out" / "llama-Q8_0.gguf").read_bytes() == (tmp_path / "alone.gguf").read_bytes()


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (["-f", "gguf:q8_0", "--card", "--mix", "measured"], "--mix: found 'measured'; expected named"),
        (
            ["-f", "gguf", "-f", "nf4", "-t", "q8_0"],
            "no --type beside several --format; write --format gguf:q8_0",
        ),
        (["-f", "gguf:q8_0", "-t", "q4_0"], "no --type, since --format gguf:q8_0 names one already"),
        (["-f", "gguf:q8_0", "--text", "demo"], "--text: found 'demo'; expected --card, or several --format"),
        (
            ["-f", "gguf:q8_0", "-f", "nf4", "--base-model", "x"],
            "base-model: found 'x'; expected an id on the hub",
        ),
        (
            ["-f", "gguf:q8_0", "-f", "nf4", "--text", "no-such-text", "--window", "64"],
            "no-such-text: cannot be read",
        ),
        (["-f", "gguf:q8_0", "-f", "nf4", "--text", "demo", "--window", "9999"], "at most 256 tokens"),
    ],
)
def test_command_lines_that_cannot_be_meant(capsys, llama, tmp_path, arguments, says):
    done = call(capsys, "export", llama, *arguments, "-o", tmp_path / "out")
    assert done.code in (2, 3)
    assert says in done.err
    assert list(tmp_path.iterdir()) == []


def test_folder_that_is_a_file(capsys, llama, tmp_path):
    (tmp_path / "out.gguf").write_text("mine")
    done = call(capsys, "export", llama, "-f", "gguf:q8_0", "-f", "nf4", "-o", tmp_path / "out.gguf")
    assert done.code == 4
    assert "out.gguf: is a file, but several formats go into a folder" in done.err
    assert (tmp_path / "out.gguf").read_text() == "mine"


def test_dry_run_writes_nothing_and_knows_the_sizes(capsys, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    arguments = ("export", "demo", "-f", "gguf:q4_k_m", "-f", "nf4", "-f", "gguf:f16")
    planned = call(capsys, *arguments, "--dry-run", "--json")
    assert (planned.code, planned.err) == (
        0,
        "qformats: nf4 is bitsandbytes:nf4: NF4 table, one scale per 64\n",
    )
    assert list(tmp_path.iterdir()) == []
    told = call(capsys, *arguments, "--dry-run").out
    assert "Nothing was written. demo-llama-quantized would take " in told
    done = call(capsys, *arguments, "--json")
    assert done.code == 0
    plan, report = json.loads(planned.out), json.loads(done.out)
    assert plan["folder"] == report["folder"] == "demo-llama-quantized"
    assert plan["nbytes"] == report["nbytes"] > 15_000_000
    for before, after in zip(plan["outputs"], report["outputs"], strict=True):
        assert before["report"]["files"] == after["report"]["files"]
        path = tmp_path / "demo-llama-quantized" / after["name"]
        files = [path] if path.is_file() else [path / name for name, _ in after["report"]["files"]]
        assert sum(file.stat().st_size for file in files) == before["report"]["file_nbytes"]


def test_require_exact_is_asked_of_every_format(capsys, demo_q8, tmp_path):
    arguments = ("export", demo_q8, "-f", "gguf:q8_0", "-f", "gguf:q4_0", "-o", tmp_path / "out")
    done = call(capsys, *arguments, "--require-exact")
    assert done.code == 3
    assert "gguf:q4_0" in done.err
    assert list(tmp_path.iterdir()) == []
    told = call(capsys, *arguments, "--check-exact", "--json")
    first, second = (each["report"]["tensors"] for each in json.loads(told.out)["outputs"])
    assert "no" not in {tensor["exact"] for tensor in first}
    assert list(tmp_path.iterdir()) == []
    assert second


def test_split_outputs(llama, tmp_path):
    options = {"max-shard-size": "50KB"}
    report = qformats.publish(llama, tmp_path / "out", formats=["gguf:q8_0", "gguf:f16"], options=options)
    parts = [name for name, _ in report.outputs[0].report.files]
    assert len(parts) > 3
    assert parts[0].startswith("llama-Q8_0-00001-of-")
    card = (tmp_path / "out" / "README.md").read_text()
    assert f"({parts[0]})" in card
    assert f"llama-cli -m {parts[0]} " in card
    sums = (tmp_path / "out" / "SHA256SUMS").read_text()
    assert all(f"  {part}\n" in sums for part in parts)


def test_one_format_may_be_published_too(llama, tmp_path):
    qformats.publish(llama, tmp_path / "out", formats="gguf:q8_0")
    names = sorted(path.name for path in (tmp_path / "out").iterdir())
    assert names == ["README.md", "SHA256SUMS", "llama-Q8_0.gguf", "llama-Q8_0.gguf.qformats.json"]


def test_a_model_published_into_its_own_folder(llama, tmp_path):
    """As people do who quantize where the model lies; the folder's own card stays."""
    model = Path(shutil.copytree(llama, tmp_path / "llama"))
    (model / "README.md").write_text("mine")
    with pytest.raises(OutputError, match=r"README\.md: exists already"):
        qformats.publish(model, model, formats=["gguf:q8_0", "gguf:f16"])
    assert (model / "README.md").read_text() == "mine"

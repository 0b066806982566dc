"""The card and the checksums of a publisher's run, as the hub, compare and sha256sum read them."""

from __future__ import annotations

import re
import shutil
import subprocess
from pathlib import Path

import pytest
import yaml
from huggingface_hub import ModelCard, metadata_load

import qformats
from qformats.publishing.card import divergence
from qformats.publishing.files import checksums
from qformats.work.progress import Silent

FORMATS = ["gguf:q4_k_m", "gptq:4bit-128g", "nf4", "glm:int4", "gguf:bf16"]


@pytest.fixture(scope="module")
def published(tmp_path_factory):
    folder = tmp_path_factory.mktemp("published") / "out"
    report = qformats.publish(
        "demo", folder, formats=FORMATS, quantizer="rtn", text="demo", windows=2, window=128, device="cpu"
    )
    return folder, report


def table(card: str) -> list[list[str]]:
    """Cells of the card's table, without its heading."""
    rows = [line for line in card.splitlines() if line.startswith("|")]
    return [[cell.strip() for cell in row.strip("|").split("|")] for row in rows[2:]]


def test_checksums_are_what_sha256sum_checks(published, tmp_path):
    folder, _ = published
    done = subprocess.run(
        ["sha256sum", "-c", "SHA256SUMS"], cwd=folder, capture_output=True, text=True, check=False
    )
    assert (done.returncode, done.stderr) == (0, "")
    files = {path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file()}
    checked = {line.removesuffix(": OK") for line in done.stdout.splitlines()}
    assert checked == files - {"README.md", "SHA256SUMS"}
    copy = Path(shutil.copytree(folder, tmp_path / "copy"))
    with (copy / "demo-llama-int4" / "model.safetensors").open("r+b") as file:
        file.seek(5000)
        file.write(b"\0\1\2\3")
    done = subprocess.run(
        ["sha256sum", "-c", "SHA256SUMS"], cwd=copy, capture_output=True, text=True, check=False
    )
    assert done.returncode == 1
    assert "demo-llama-int4/model.safetensors: FAILED" in done.stdout


def test_checksums_of_names_that_break_lines(tmp_path):
    files = [tmp_path / name for name in ("a\\b.gguf", "c\nd.gguf", "e f.gguf", "g\rh.gguf")]
    for file in files:
        file.write_text(file.name)
    (tmp_path / "SHA256SUMS").write_text(checksums(tmp_path, files, 2, Silent()))
    done = subprocess.run(
        ["sha256sum", *(f.name for f in files)], cwd=tmp_path, capture_output=True, check=True
    )
    assert (tmp_path / "SHA256SUMS").read_bytes() == done.stdout
    subprocess.run(["sha256sum", "-c", "SHA256SUMS"], cwd=tmp_path, capture_output=True, check=True)


def test_divergences_are_those_of_compare(published):
    folder, report = published
    paths = [folder / output.name for output in report.outputs]
    compared = qformats.compare("demo", *paths, text="demo", windows=2, window=128, device="cpu")
    rows = table((folder / "README.md").read_text())
    for output, model, row in zip(report.outputs, compared.models, rows, strict=True):
        against = model.behaviour.against
        assert output.mean_kl == against.kl.mean
        assert output.same_top == against.same_top
        assert row[4:] == [divergence(against.kl.mean), f"{against.same_top.value:.1%}"]
    assert report.text == compared.text
    assert f"on {compared.text.scored:,} tokens in 2 windows of 128" in (folder / "README.md").read_text()


def test_table_has_the_files_as_they_are(published):
    folder, report = published
    for output, row in zip(report.outputs, table((folder / "README.md").read_text()), strict=True):
        path = folder / output.name
        name, link = re.fullmatch(r"\[(.*)\]\((.*)\)", row[0]).groups()
        assert (name.split(" ")[0], link) == (output.name, output.name)
        files = [path] if path.is_file() else [f for f in path.iterdir() if f.name != "qformats.json"]
        nbytes = sum(file.stat().st_size for file in files)
        assert row[1] == f"`{output.report.format}`"
        assert row[3].endswith(f"({nbytes:,} bytes)")
        assert float(row[2]) == round(qformats.open(path).bits_per_weight, 2)


def test_front_matter_is_what_the_hub_reads(published):
    folder, _ = published
    front = metadata_load(folder / "README.md")
    assert front == {
        "base_model_relation": "quantized",
        "license": "cc0-1.0",
        "language": ["en"],
        "pipeline_tag": "text-generation",
        "library_name": "transformers",
        "tags": ["gguf", "gptq", "bitsandbytes", "glm", "quantized"],
    }
    assert ModelCard.load(folder / "README.md").data.license == "cc0-1.0"


def test_every_output_has_a_command(published):
    folder, report = published
    commands = re.findall(r"```sh\n(.*)\n```", (folder / "README.md").read_text())
    assert commands == [
        'llama-cli -m demo-llama-Q4_K_M.gguf -p "Once upon a time"',
        *(f'qformats generate {output.name} "Once upon a time"' for output in report.outputs[1:4]),
        'llama-cli -m demo-llama-BF16.gguf -p "Once upon a time"',
        "sha256sum -c SHA256SUMS",
    ]


def test_card_tells_nothing_of_this_machine(tmp_path):
    text = tmp_path / "private" / "corpus.txt"
    text.parent.mkdir()
    text.write_text((Path(qformats.__file__).parent / "demo" / "calibration.txt").read_text()[:60_000])
    imatrix = text.parent / "m.gguf"
    qformats.imatrix("demo", imatrix, chunks=1, chunk_size=32, device="cpu")
    folder = tmp_path / "out"
    qformats.publish(
        "demo",
        folder,
        formats=["gguf:q4_0", "gptq:4bit-128g"],
        imatrix=imatrix,
        quantizer_options={
            "calibration": str(text),
            "samples": "2",
            "sequence-length": "32",
            "device": "cpu",
        },
        text=text,
        window=64,
        windows=1,
        device="cpu",
    )
    card = (folder / "README.md").read_text()
    assert str(tmp_path) not in card
    assert "private" not in card
    assert "calibrated on 2 x 32 tokens of corpus.txt" in card
    assert "errors weighed by m.gguf" in card
    assert "in 1 windows of 64 of corpus.txt" in card


HUB_CARD = """---
license: other
license_name: llama3.2
license_link: LICENSE
language: [en, "no", fr]
pipeline_tag: text-generation
library_name: transformers
tags: [facebook, llama-3]
base_model: organisation/parent
quantized_by: somebody
model-index:
- name: x
---
# A model
"""


def card_of(model: Path, folder: Path, **options) -> dict:
    qformats.publish(model, folder, formats=["gguf:q8_0", "gguf:f16"], **options)
    return metadata_load(folder / "README.md")


def test_licence_and_tags_of_the_source_are_carried_over(copy, tmp_path):
    (copy / "README.md").write_text(HUB_CARD)
    assert card_of(copy, tmp_path / "out", base_model="organisation/model") == {
        "base_model": "organisation/model",
        "base_model_relation": "quantized",
        "license": "other",
        "license_name": "llama3.2",
        "license_link": "https://huggingface.co/organisation/model/blob/main/LICENSE",
        "language": ["en", "no", "fr"],
        "pipeline_tag": "text-generation",
        "library_name": "transformers",
        "tags": ["facebook", "llama-3", "gguf", "quantized"],
    }


def test_base_model_of_the_hubs_cache(llama, tmp_path):
    snapshot = tmp_path / "models--organisation--a.model-1B" / "snapshots" / "0123"
    shutil.copytree(llama, snapshot)
    assert card_of(snapshot, tmp_path / "out")["base_model"] == "organisation/a.model-1B"


def test_licence_of_a_gguf_file(llama, tmp_path):
    """Under the keys that convert_hf_to_gguf.py writes; gguf-py writes this file."""
    import gguf

    qformats.export(llama, tmp_path / "plain.gguf", format="gguf:f32")
    reader = gguf.GGUFReader(tmp_path / "plain.gguf")
    writer = gguf.GGUFWriter(tmp_path / "model.gguf", "llama")
    for field in reader.fields.values():
        if field.name.startswith("GGUF.") or field.name == "general.architecture":
            continue
        if field.types[0] == gguf.GGUFValueType.ARRAY:
            writer.add_array(field.name, field.contents())
        else:
            writer.add_key_value(field.name, field.contents(), field.types[0])
    writer.add_license("apache-2.0")
    writer.add_languages(["de", "en"])
    writer.add_tags(["story"])
    for tensor in reader.tensors:
        writer.add_tensor(tensor.name, tensor.data)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    front = card_of(tmp_path / "model.gguf", tmp_path / "out")
    assert (front["license"], front["language"]) == ("apache-2.0", ["de", "en"])
    assert front["tags"] == ["story", "gguf", "quantized"]


@pytest.mark.parametrize(
    "card",
    [
        "---\nlicense: [\n---\n",
        "---\n- a\n- b\n---\n",
        "---\nlicense: mit\nlicense: apache-2.0\n: :\n---\n",
        "\xff\xfe",
    ],
)
def test_card_that_cannot_be_read_is_named_and_costs_nothing_else(copy, tmp_path, card):
    (copy / "README.md").write_bytes(card.encode("latin-1"))
    with pytest.warns(
        UserWarning, match=r"README.md: has front matter .* The file does not say what it says"
    ):
        report = qformats.publish(copy, tmp_path / "out", formats=["gguf:q8_0", "gguf:f16"])
    told = " ".join(report.notes)
    assert f"{copy / 'README.md'}: has front matter that cannot be read" in told
    assert "names no license, since the source does not" in told
    assert "license" not in metadata_load(tmp_path / "out" / "README.md")


def test_values_of_the_source_stay_small(copy, tmp_path):
    """Aliases that would unfold to gigabytes, texts of any length, and other kinds of values are left out."""
    bomb = "a: &a [x, x, x, x, x, x, x, x, x, x]\n"
    for before, name in zip("abcdefgh", "bcdefghi", strict=True):
        bomb += f"{name}: &{name} [{', '.join([f'*{before}'] * 10)}]\n"
    front = yaml.safe_dump({"license": "x" * 5000, "license_name": {"a": 1}, "pipeline_tag": 7})
    (copy / "README.md").write_text(f"---\n{bomb}tags: *i\n{front}---\n")
    assert card_of(copy, tmp_path / "out") == {
        "base_model_relation": "quantized",
        "pipeline_tag": "text-generation",
        "tags": ["gguf", "quantized"],
    }


def test_names_are_no_markup(llama, tmp_path):
    model = Path(shutil.copytree(llama, tmp_path / "a|b [c](x) <i>`d`"))
    folder = tmp_path / "out"
    report = qformats.publish(model, folder, formats=["gguf:q8_0", "gguf:f16"])
    card = (folder / "README.md").read_text()
    cells = re.split(r"(?<!\\)\|", next(line for line in card.splitlines() if line.startswith("| [")))
    assert len(cells) == 6
    assert "<i>" not in card.replace(r"\<i\>", "").replace("'", "") or "llama-cli" in card
    assert report.outputs[0].name == "a|b [c](x) <i>`d`-Q8_0.gguf"
    assert "](a%7Cb%20%5Bc%5D%28x%29%20%3Ci%3E%60d%60-Q8_0.gguf)" in card

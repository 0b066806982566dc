"""A record of an export or a report in place of a model is called what it is."""

from __future__ import annotations

import pytest
from cli.command import call

import qformats


@pytest.fixture(scope="module")
def exported(tmp_path_factory):
    target = tmp_path_factory.mktemp("exported") / "small.gguf"
    qformats.export("demo", target, format="gguf:q8_0")
    qformats.export("demo", target.with_name("folder"), format="glm:int8")
    return target.parent


@pytest.mark.parametrize(
    "command", [("compare", "demo"), ("inspect",), ("export", "-f", "gguf", "-o", "x.gguf")]
)
@pytest.mark.parametrize(("record", "model"), [("small.gguf", "small.gguf"), ("folder/", "folder")])
def test_the_record_of_an_export(command, record, model, exported, capsys):
    found = sorted((exported / record).parent.glob("small*.qformats.json")) if "." in record else None
    path = found[0] if found else exported / record / "qformats.json"
    done = call(capsys, *command, path)
    assert (done.code, done.out) == (3, "")
    assert "the record of an export by qformats" in done.err
    assert f"Give the model that it describes: {exported / model}." in done.err
    assert done.err.count("\n") == 1


def test_the_plan_of_a_record(exported, capsys):
    done = call(capsys, "inspect", "--plan", "gguf:q4_0", exported / "folder" / "qformats.json")
    assert (done.code, done.out) == (3, "")
    assert "the record of an export by qformats" in done.err


def test_the_report_of_a_comparison(tmp_path, capsys):
    report = tmp_path / "report.json"
    assert call(capsys, "compare", "demo", "--try", "gguf:q8_0", "--json", report).code == 0
    done = call(capsys, "compare", "demo", report)
    assert done.code == 3
    assert (
        "the report of a comparison by qformats, and not a model. Give the models that it compares"
        in done.err
    )


def test_other_json_is_called_a_file_of_a_folder(tmp_path, capsys):
    for content in ("[]", "{}", "not JSON", "[" * 9000):
        (tmp_path / "x.json").write_text(content)
        done = call(capsys, "compare", "demo", tmp_path / "x.json")
        assert done.code == 3
        assert "record of an export" not in done.err

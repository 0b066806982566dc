"""Every command: pure JSON, documented exit codes, tables that fit, nothing on screen that was not asked for."""

from __future__ import annotations

import json
import re
import signal
import socket
import threading
import time
from pathlib import Path

import pytest
from cli.command import call, run, run_in_terminal, start, without_escapes
from models import smollm2, tiny

import qformats


@pytest.fixture(scope="session")
def llama(tmp_path_factory) -> Path:
    return tiny.build("llama", tmp_path_factory.mktemp("models") / "llama")


@pytest.fixture(scope="session")
def gguf(llama, tmp_path_factory) -> Path:
    target = tmp_path_factory.mktemp("models") / "llama.gguf"
    qformats.export(llama, target, format="gguf:q4_0")
    return target


def test_help_is_fast_and_light():
    """No torch, no transformers, no plugin: help and version are there at once."""
    code = (
        "import sys; sys.argv = ['qformats', '--help']\n"
        "from qformats.cli import main\n"
        "try: main()\n"
        "except SystemExit as stop: assert not stop.code\n"
        "heavy = {'torch', 'numpy', 'numba', 'transformers', 'safetensors', 'huggingface_hub'} & set(sys.modules)\n"
        "assert not heavy, heavy\n"
        "rooms = {name.split('.')[1] for name in sys.modules if name.startswith('qformats.')}\n"
        "assert rooms == {'cli'}, rooms"
    )
    import subprocess
    import sys

    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert "Exit codes: 0 done, 1 a check failed, 2 wrong command line, 3 unusable model" in re.sub(
        r"\s+", " ", done.stdout
    )


def test_version(capsys):
    assert call(capsys, "--version").out == f"qformats {qformats.__version__}\n"


@pytest.mark.parametrize(
    "args",
    [
        ("formats",),
        ("plugins",),
        ("inspect", "demo"),
        ("export", "demo", "-f", "gguf:q4_0", "-o", "x.gguf", "--dry-run"),
        ("export", "demo", "-f", "gguf:q4_0", "-o", "x.gguf"),
    ],
)
def test_json_is_pure(tmp_path, capfd, args):
    """Standard output holds one JSON document, also where standard error is the same terminal as usual."""
    written = args[-1] == "x.gguf"
    args = [str(tmp_path / a) if a == "x.gguf" else a for a in args]
    # With all that is imported, where most is.
    result = run(*args, "--json", fresh=True) if written else call(capfd, *args, "--json")
    assert result.code == 0
    assert result.err == ""
    assert json.loads(result.out, parse_constant=pytest.fail)


@pytest.mark.parametrize(
    ("args", "code"),
    [
        (("export", "demo"), 2),
        (("export", "demo", "-f", "gguf", "-j", "0"), 2),
        (("export", "demo", "-f", "nope"), 2),
        (("export", "demo", "-f", "gguf:q4_0", "-t", "q8_0"), 2),
        (("export", "demo", "-f", "gguf", "-O", "arch"), 2),
        (("export", "demo", "-f", "gguf", "-O", "nope=1"), 2),
        (("export", "demo", "-f", "gguf", "--max-shard-size", "many"), 2),
        (("inspect", "./not-here"), 3),
        (("inspect", "not-here"), 3),
        (("export", "demo", "-f", "gguf", "-o", "/proc/nope/x.gguf"), 4),
    ],
)
def test_exit_codes(capsys, args, code):
    result = call(capsys, *args)
    assert (result.code, result.out) == (code, "")
    assert "Traceback" not in result.err


def test_unknown_format_lists_what_is_there(tmp_path):
    """Installed formats, and plugins that would have brought more had they loaded."""
    info = tmp_path / "broken-1.2.dist-info"
    info.mkdir()
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: broken\nVersion: 1.2\n")
    (info / "entry_points.txt").write_text("[qformats]\nbroken = broken_plugin\n")
    (tmp_path / "broken_plugin.py").write_text("import a_module_that_is_not_installed\n")
    result = run("export", "demo", "-f", "ggufs:q4_0", "-o", tmp_path / "x.gguf", PYTHONPATH=str(tmp_path))
    assert result.code == 2
    error, instead = result.err.splitlines()[-2:]
    assert re.match(
        r"qformats: no format 'ggufs:q4_0'\. Did you mean 'gguf:q4_0', 'gguf:\w+' or 'gguf:\w+'\? "
        r"qformats formats lists all \d+;",
        error,
    )
    assert instead == f"  qformats export demo -f gguf:q4_0 -o {tmp_path / 'x.gguf'}"
    assert "failed to load: broken broken 1.2 (ModuleNotFoundError: No module named 'a_module_that" in error
    for command in ("formats", "plugins"):
        shown = run(command, PYTHONPATH=str(tmp_path))
        assert shown.code == 0
        assert "a_module_that_is_not_installed" in shown.out
    listed = run("plugins", "--json", PYTHONPATH=str(tmp_path))
    assert [p["name"] for p in json.loads(listed.out) if p["error"]] == ["broken"]


@pytest.mark.parametrize("columns", [80, 120])
@pytest.mark.parametrize(
    "args",
    [
        ("formats",),
        ("plugins",),
        ("inspect", "GGUF"),
        ("export", "demo", "-f", "gguf", "-o", "x", "--dry-run"),
    ],
    ids=lambda args: args[0],
)
def test_tables_fit_the_terminal(gguf, args, columns):
    args = [str(gguf) if a == "GGUF" else a for a in args]
    code, text = run_in_terminal(*args, columns=columns)
    assert code == 0
    lines = without_escapes(text).splitlines()
    # The path of the file is printed as a whole, so that it can be copied.
    assert max(len(line) for line in lines if str(gguf) not in line) <= columns
    # No column is squeezed to a sliver: a name is never broken.
    assert any("gguf:q4_0 " in line or " q4_0" in line or "q8_0" in line for line in lines)
    assert not any(line.strip() in ("weight", "ight", "eight") for line in lines)


def test_lines_are_whole_where_there_is_no_terminal(capsys, llama, tmp_path):
    result = call(capsys, "export", llama, "-f", "dense:f16", "-o", tmp_path / "x", "--dry-run")
    assert re.search(
        r"^model\.layers\.0\.post_attention_layernorm\.weight +64 +f32 +f16 +128 *$", result.out, re.MULTILINE
    )
    assert "\x1b" not in result.out


def test_colours(tmp_path):
    coloured = re.compile(r"\x1b\[(?:\d+;)*3[0-9]")
    args = ("export", "demo", "-f", "gguf", "--dry-run", "-o", tmp_path / "x.gguf")
    assert coloured.search(run_in_terminal(*args)[1])
    assert not coloured.search(run_in_terminal(*args, NO_COLOR="1")[1])
    assert "\x1b" not in run(*args, FORCE_COLOR="").out


def test_progress_is_for_terminals_only(tmp_path):
    args = ("export", "demo", "-f", "gguf", "--force", "-o", tmp_path / "x.gguf")
    code, text = run_in_terminal(*args)
    assert code == 0
    assert "10.0/10.0 MB" in text
    # The bar goes away when it has done its work.
    assert without_escapes(text).rstrip().endswith('-p "Once upon a time"')
    result = run(*args)
    assert (result.code, result.err) == (0, "")
    assert "/10.0 MB" not in result.out


def test_inspect_folder_file_and_demo(capsys, llama, gguf):
    folder = call(capsys, "inspect", llama).out
    assert re.search(r"^container +huggingface *$", folder, re.MULTILINE)
    assert re.search(r"^weights +\S+ in 21 tensors *$", folder, re.MULTILINE)
    assert re.search(r"^rms_norm_eps +2e-05 *$", folder, re.MULTILINE)
    file = call(capsys, "inspect", gguf, "--tensors").out
    assert re.search(r"^container +gguf *$", file, re.MULTILINE)
    assert re.search(r"^llama.attention.layer_norm_rms_epsilon +2e-05 *$", file, re.MULTILINE)
    # Tensors are shown under the names that all containers share.
    assert re.search(
        r"^model.layers.0.self_attn.q_proj.weight +64x64 +gguf:q4_0 +2,304 *$", file, re.MULTILINE
    )
    facts = json.loads(call(capsys, "inspect", gguf, "--json").out)
    assert facts["metadata"]["llama.attention.layer_norm_rms_epsilon"] == 2e-05
    assert facts["file_nbytes"] == gguf.stat().st_size
    assert "4,983,040 in 39 tensors" in call(capsys, "inspect", "demo").out


def test_inspect_split(capsys, llama, tmp_path):
    report = qformats.export(
        llama, tmp_path / "x.gguf", format="gguf:q8_0", options={"max-shard-size": "50KB"}
    )
    for name, _ in (report.files[0], report.files[-1]):
        facts = json.loads(call(capsys, "inspect", tmp_path / name, "--json").out)
        assert len(facts["files"]) == len(report.files)
        assert len(facts["tensors"]) == 21


def test_messages_do_not_steer_the_terminal(tmp_path):
    """Names of files and tensors are a stranger's; errors, warnings and notices hold them."""
    strange = tmp_path / "a\x1b]0;title\x07\nqformats: done"
    result = run("inspect", strange)
    assert result.code == 3
    assert "\x1b" not in result.err
    assert r"a\x1b]0;title\x07\nqformats: done" in result.err
    assert result.err.count("\n") == 1


def write_metadata_only(path: Path) -> None:
    """A GGUF file with metadata and no tensors, as llama.cpp keeps its vocabularies."""
    from qformats_gguf.header import serialize
    from qformats_gguf.metadata import Value, ValueType, string

    metadata = {"general.architecture": string("llama")}
    metadata["general.name"] = string("\x1b[31mred\x07 [b]x[/b]\nline")
    metadata["x.nan"] = Value(ValueType.F32, float("nan"))
    path.write_bytes(serialize(metadata, []).data)


def test_inspect_a_vocabulary(capsys, tmp_path):
    """No tensors, and metadata that would move the cursor or is not JSON."""
    file = tmp_path / "vocab.gguf"
    write_metadata_only(file)
    result = call(capsys, "inspect", file)
    assert result.code == 0
    assert re.search(r"^weights +0 in 0 tensors *$", result.out, re.MULTILINE)
    assert re.search(r"^general.name +\\x1b\[31mred\\x07 \[b\]x\[/b\]\\nline *$", result.out, re.MULTILINE)
    assert "\x1b" not in result.out
    facts = json.loads(call(capsys, "inspect", file, "--json").out, parse_constant=pytest.fail)
    assert facts["metadata"]["x.nan"] == "nan"
    refused = call(capsys, "export", file, "-f", "gguf:q4_0", "-o", tmp_path / "x.gguf")
    assert refused.code == 3
    assert "holds no tensors (a vocabulary only?)" in refused.err


def test_inspect_a_published_model(capsys):
    facts = call(capsys, "inspect", smollm2.path())
    assert facts.code == 0
    assert "1e-05" in facts.out
    assert "9.99999" not in facts.out


@pytest.fixture
def silent_hub():
    """A server that takes calls and never answers."""
    with socket.create_server(("127.0.0.1", 0)) as server:
        calls = []

        def take() -> None:
            while True:
                try:
                    calls.append(server.accept()[0])
                except OSError:
                    return

        threading.Thread(target=take, daemon=True).start()
        yield f"http://127.0.0.1:{server.getsockname()[1]}", calls
        for call_ in calls:
            call_.close()


def test_hub_that_cannot_be_reached(silent_hub, tmp_path):
    """Offline, refused and silent hubs: each within seconds, and with what to do instead."""
    address, _ = silent_hub
    cases = {
        "offline mode is enabled": {"HF_HUB_OFFLINE": "1"},
        "refused": {"HF_ENDPOINT": "http://127.0.0.1:9"},
        "timed out": {"HF_ENDPOINT": address},
    }
    for reason, changes in cases.items():
        began = time.monotonic()
        result = run("inspect", "some/model", HF_HOME=str(tmp_path), **changes)
        assert time.monotonic() - began < 30
        assert (result.code, result.out) == (3, "")
        assert result.err.startswith(
            "qformats: some/model: no such file or folder, not in the local hub cache"
        )
        assert reason in result.err
        assert (
            "copy the model's folder (config.json, *.safetensors, tokenizer files) here and give its path"
            in result.err
        )


def test_interrupted_before_anything_is_planned(silent_hub, tmp_path):
    address, calls = silent_hub
    target = tmp_path / "x.gguf"
    with start("export", "some/model", "-f", "gguf", "-o", target, HF_ENDPOINT=address) as process:
        while not calls:
            time.sleep(0.01)
        process.send_signal(signal.SIGINT)
        out, err = process.communicate(timeout=20)
    assert (process.returncode, out) == (130, "")
    assert err == "qformats: interrupted; the target is unchanged\n"
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("command", [(), ("export",), ("chat",), ("inspect",)])
def test_flags_show_no_type(command, capsys):
    """Typer's help says <bool> beside a flag, as if it took a value."""
    assert "<bool>" not in call(capsys, *command, "--help").out

"""What an import may cost: every check runs in a fresh process."""

import json
import os
import subprocess
import sys

import pytest

HEAVY = (
    "torch",
    "fastapi",
    "uvicorn",
    "numba",
    "transformers",
    "triton",
    "safetensors",
    "gguf",
    "huggingface_hub",
    "llvmlite",
)


def _loaded(program, tmp_path):
    """Heavy modules that a program has loaded at its end."""
    report = tmp_path / "modules.json"
    code = (
        "import atexit, json, pathlib, sys\n"
        f"atexit.register(lambda: pathlib.Path({str(report)!r}).write_text(json.dumps(sorted(sys.modules))))\n"
        f"{program}\n"
    )
    environment = {**os.environ, "PYTHONWARNINGS": "error"}
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, env=environment, timeout=120
    )
    assert done.returncode == 0, done.stderr
    assert done.stderr == ""
    modules = set(json.loads(report.read_text()))
    return {name for name in HEAVY if name in modules}, modules, done.stdout


def test_importing_the_package_loads_nothing_heavy(tmp_path):
    heavy, modules, _ = _loaded("import qformats; qformats.__version__; dir(qformats)", tmp_path)
    assert heavy == set()
    ours = {name for name in modules if name.startswith(("qformats.", "qformats_"))}
    assert ours == {"qformats.version"}, "names are lazy"


def test_every_public_name_can_be_had_without_torch(tmp_path):
    heavy, _, _ = _loaded("import qformats\nfor n in qformats.__all__: getattr(qformats, n)", tmp_path)
    assert not heavy & {"torch", "fastapi", "numba", "transformers", "triton"}


# In one process: what none of the commands so far has loaded, the last one alone does not load either.
EACH = """
import contextlib, io, json, sys
from qformats.cli import main
for line in json.loads(sys.argv[1]):
    sys.argv = ["qformats", *line]
    code, output = 0, io.StringIO()
    try:
        with contextlib.redirect_stdout(output):
            main()
    except SystemExit as stop:
        code = stop.code or 0
    heavy = sorted({"torch", "fastapi", "numba", "transformers", "triton"} & {*sys.modules})
    print(json.dumps({"line": line, "code": code, "printed": bool(output.getvalue().strip()), "heavy": heavy}))
"""


def _computing_nothing(lines):
    done = subprocess.run(
        [sys.executable, "-c", EACH, json.dumps(lines)],
        capture_output=True,
        text=True,
        env={**os.environ, "PYTHONWARNINGS": "error"},
        timeout=120,
    )
    assert (done.returncode, done.stderr) == (0, "")
    found = [json.loads(line) for line in done.stdout.splitlines()]
    assert found == [{"line": line, "code": 0, "printed": True, "heavy": []} for line in lines]


COMMANDS = [
    "--help",
    *("export --help", "generate --help", "chat --help", "serve --help", "compare --help", "--version"),
    *("check --help", "new-plugin --help"),
    *("formats", "plugins", "plugins --json"),
    *("inspect demo", "inspect demo --json", "inspect --plan gguf:q4_0 demo", "inspect --plan gptq demo"),
]


def test_commands_that_compute_nothing_load_no_torch():
    _computing_nothing([command.split() for command in COMMANDS])


def test_every_public_name_exists():
    import qformats

    assert sorted(set(qformats.__all__)) == sorted(qformats.__all__)
    for name in {*qformats.__all__} - {"hookimpl", "hookspec", "__version__"}:
        assert getattr(qformats, name).__name__ == name
    assert qformats.hookimpl.project_name == qformats.hookspec.project_name == "qformats"
    with pytest.raises(AttributeError, match="no attribute 'quantise'"):
        _ = qformats.quantise
    assert {*qformats.__all__} <= {*dir(qformats)}


@pytest.fixture(scope="module")
def stored(tmp_path_factory):
    """The demo model as a GGUF file, and a configuration alone."""
    folder = tmp_path_factory.mktemp("stored")
    import qformats

    qformats.export("demo", folder / "demo.gguf", format="gguf:q8_0")
    config = dict(qformats.open("demo").config)
    (folder / "config.json").write_text(json.dumps(config))
    return folder


def test_looking_at_a_model_loads_no_torch(stored):
    plans = [
        ["inspect", "--plan", format, str(stored / name)]
        for format in ("gguf:q4_0", "bitsandbytes:nf4")
        for name in ("demo.gguf", "config.json")
    ]
    _computing_nothing([["inspect", str(stored / "demo.gguf")], *plans])

"""Chat templates: rendered as Transformers does, and never longer, larger or louder than allowed."""

from __future__ import annotations

import json
import re
import resource
import shutil
import subprocess
import sys
import time
from pathlib import Path

import pytest
from cli.command import call
from models.text import CHATML

import qformats
from qformats.errors import BackendUnavailableError, CheckpointError
from qformats.folder import chat, chat_render
from qformats.runtime import tokenizer

HELLO = [{"role": "user", "content": "Hello \N{SNOWMAN} \ud800"}]
LLAMA = (
    "{% if messages[0]['role'] == 'system' %}{% set rest = messages[1:] %}{% else %}{% set rest = messages %}"
    "{% endif %}{% for message in rest %}{% if (message['role'] == 'user') != (loop.index0 % 2 == 0) %}"
    "{{ raise_exception('Conversation roles must alternate') }}{% endif %}"
    "{{ bos_token + '[INST] ' + message['content'].strip() + ' [/INST]' }}{% endfor %}"
)
LONG = (
    "{%- macro tool(t) %}{{ t | tojson(indent=2) }}{% endmacro %}{% set ns = namespace(n=0) %}"
    "{%- for i in range(5000) %}{% set ns.n = ns.n + i %}{% if i % 7 %}{% continue %}{% endif %}{{ i }},{% endfor %}"
    "{{ tool({'a': [1, 'é<']}) }}{% generation %}{{ ns.n }}{% endgeneration %}{{ tools is none }}"
    "{{ undefined }}{{ messages[-1].content | upper }}{% if add_generation_prompt %}A:{% endif %}"
    + "{# long #}"
    * 3000
)


def render(template: str, messages=HELLO) -> str:
    return chat_render.render(template, messages, variables={"bos_token": "<s>"}, source="model")


@pytest.mark.parametrize("template", [CHATML, LLAMA, LONG], ids=["chatml", "llama", "long"])
def test_as_in_transformers(template):
    theirs = tokenizer(qformats.open("demo"))
    theirs.bos_token = "<s>"
    expected = theirs.apply_chat_template(
        HELLO, chat_template=template, add_generation_prompt=True, tokenize=False
    )
    assert render(template) == expected


@pytest.mark.parametrize(
    ("template", "reason"),
    [
        ("{{ nothing.content }}", "fails: 'nothing' is undefined"),
        ("a\n{% if %}", "has an error in line 2: Expected an expression, got 'end of statement block'"),
        ("{{ messages | nope }}", "has an error in line 1: No filter named 'nope'"),
        ("{{ raise_exception('no \n system role.') }}", "fails: no system role"),
        ("{{ raise_exception('x' * 999) }}", f"fails: {'x' * 193}..."),
        (
            "{{ messages.__class__.__mro__ }}",
            "fails: access to attribute '__class__' of 'list' object is unsafe",
        ),
        ("{% include 'other' %}", "fails: TypeError: no loader for this environment specified"),
        ("{% macro m() %}{{ m() }}{% endmacro %}{{ m() }}", "is nested too deeply"),
        ("{{" + "(" * 5000 + "1" + ")" * 5000 + "}}", "is nested too deeply"),
        ("{{ range(10**9) }}", "fails: OverflowError: Range too big.*"),
    ],
)
def test_errors_are_one_sentence(template, reason):
    pattern = reason if reason.endswith(".*") else re.escape(reason)
    whole = (
        rf"model: its chat template {pattern}; expected one that turns a message into a prompt\. Replace.*"
    )
    with pytest.raises(CheckpointError) as caught:
        render(template)
    assert re.fullmatch(whole, str(caught.value))


@pytest.mark.parametrize(
    "template",
    [
        "{{ 'x' * 10**9 }}",
        "{% set n = messages | length %}{{ 'x' * (n * 10**9) }}",
        "{{ 'x'.center(10**9) }}",
        "{{ 'x' | center(10**9) }}",
        "{{ '{:1000000000}'.format(1) }}",
        "{{ ('a' * 30) | replace('a', 'b' * 10**8) }}",
        "{% set s = namespace(l='x') %}{% for i in range(99) %}{% set s.l = s.l + s.l %}{% endfor %}",
        "{{ messages | tojson(indent=10**9) }}",
    ],
)
def test_memory_is_bounded(template):
    # A child counts what its parent held when it was started.
    before = max(
        resource.getrusage(who).ru_maxrss for who in (resource.RUSAGE_CHILDREN, resource.RUSAGE_SELF)
    )
    with pytest.raises(CheckpointError, match="its chat template needs more than 512 MiB of memory"):
        render(template)
    # In KiB: the limit, and what the libraries themselves take.
    assert resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss <= max(before, 1 << 20)


@pytest.mark.parametrize(
    "template",
    [
        "{% for a in range(99999) %}{% for b in range(99999) %}{% endfor %}{% endfor %}",
        "{{ 3 ** (3 ** 20) }}",
        "{% set s = 'a' * 10**6 %}{% for i in range(99999) %}{% set x = s | replace('a', 'b') %}{% endfor %}",
    ],
)
def test_time_is_bounded(template, monkeypatch):
    monkeypatch.setattr(chat_render, "_SECONDS", 1)
    with pytest.raises(CheckpointError, match="its chat template needs more than 1 seconds"):
        render(template)


def test_time_is_bounded_where_the_processor_is_busy(monkeypatch):
    monkeypatch.setattr(chat_render, "_PATIENCE", 1)
    began = time.monotonic()
    with pytest.raises(CheckpointError, match="does not end within 1 seconds"):
        render("{% for a in range(99999) %}{% for b in range(99999) %}{% endfor %}{% endfor %}")
    assert time.monotonic() - began < 20


def test_output_is_bounded():
    assert len(render("{{ 'x' * 1000000 }}")) == 1_000_000
    with pytest.raises(CheckpointError, match="writes 2000000 characters, more than 10"):
        render("{{ 'x' * 2000000 }}")
    # A long message may be repeated.
    message = [{"role": "user", "content": "y" * 2_000_000}]
    assert len(render("{{ messages[0].content }}{{ messages[0].content }}", message)) == 4_000_000


def test_without_jinja(tmp_path, monkeypatch):
    (tmp_path / "jinja2.py").write_text("raise ModuleNotFoundError('no', name='jinja2')")
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))
    with pytest.raises(
        BackendUnavailableError, match=r"jinja2 is not installed.*Install it: pip install -U jinja2"
    ):
        render("x")


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """The demo with two templates that contradict each other, as a folder and as a GGUF file."""
    folder = tmp_path_factory.mktemp("chat") / "model"
    shutil.copytree(qformats.open("demo").path, folder)
    settings = json.loads((folder / "tokenizer_config.json").read_text())
    (folder / "tokenizer_config.json").write_text(json.dumps(settings | {"chat_template": "old"}))
    (folder / "chat_template.jinja").write_text("{{ messages[0].content }}, {{ raise_exception('stop') }}")
    file = folder.with_suffix(".gguf")
    qformats.export(folder, file, format="gguf:q8_0")
    return {"folder": folder, "gguf": file}


@pytest.mark.parametrize("kind", ["folder", "gguf"])
def test_generate_takes_the_newer_template_and_names_its_errors(models, kind, capsys):
    result = call(capsys, "generate", models[kind], "Hello", "--chat", "--device", "cpu")
    assert (result.code, result.out) == (3, "")
    assert result.err.startswith(f"qformats: {models[kind]}: its chat template fails: stop; expected")
    assert result.err.count("\n") == 1


def test_the_template_of_processors_is_not_the_tokenizers(models, tmp_path):
    folder = tmp_path / "model"
    shutil.copytree(models["folder"], folder)
    (folder / "chat_template.jinja").unlink()
    (folder / "chat_template.json").write_text(json.dumps({"chat_template": "processor"}))
    source = qformats.open(folder)
    assert chat.default_template(source) == tokenizer(source).chat_template == "old"
    (folder / "chat_template.json").unlink()
    named = {"chat_template": [{"name": "rag", "template": "x"}]}
    (folder / "tokenizer_config.json").write_text(json.dumps(named))
    with pytest.raises(
        CheckpointError, match="has only chat templates named 'rag'; expected one named 'default'"
    ):
        chat.default_template(qformats.open(folder))


@pytest.mark.parametrize("suffix", ["", ".gguf"])
def test_without_a_template_nothing_heavy_is_loaded(suffix, tmp_path):
    model = "demo"
    if suffix:
        model = str(tmp_path / "demo.gguf")
        qformats.export("demo", model, format="gguf:q8_0")
    code = (
        f"import sys; sys.argv = ['qformats', 'generate', {model!r}, 'x', '--chat']\n"
        "from qformats.cli import main\n"
        "try: main()\n"
        "except SystemExit as stop: code = stop.code\n"
        "assert not {'torch', 'transformers'} & set(sys.modules), 'heavy'\n"
        "sys.exit(code)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode == 2, done.stderr
    assert done.stderr == (
        "qformats: --chat: found a model without a chat template; expected a chat model. Leave out --chat, or put "
        "the template into the model's folder as chat_template.jinja.\n"
    )

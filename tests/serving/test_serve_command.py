"""``qformats serve``: who may come in, how much may wait, and how it ends."""

from __future__ import annotations

import re
import signal
import socket
import subprocess
import sys
import threading

import openai
import pytest
from cli.command import call
from serving.running import served

HELLO = [{"role": "user", "content": "Hello"}]


@pytest.fixture(scope="module")
def template(tmp_path_factory):
    from chatting.conftest import TEMPLATE

    file = tmp_path_factory.mktemp("template") / "t.jinja"
    file.write_text(TEMPLATE)
    return file


def test_keys_queues_and_the_end(template):
    """One server: it needs a key, refuses whom it has no place for, and finishes what was begun."""
    arguments = ("demo", "--template", template, "--answers", "1", "--queue", "1", "--grace", "30")
    with served(*arguments, "--host", "0.0.0.0", QFORMATS_API_KEY="open sesame") as (url, process):
        url = url.replace("0.0.0.0", "127.0.0.1")
        with pytest.raises(openai.AuthenticationError, match="an API key is needed"):
            openai.OpenAI(base_url=f"{url}/v1", api_key="wrong", max_retries=0).models.list()
        client = openai.OpenAI(base_url=f"{url}/v1", api_key="open sesame", max_retries=0, timeout=60)
        asked = {"model": "demo-llama", "messages": HELLO, "logit_bias": {"0": -100}}
        streams = [client.chat.completions.create(**asked, stream=True, max_tokens=n) for n in (150, 5)]
        next(iter(streams[0]))
        with pytest.raises(openai.RateLimitError, match="1 requests are waiting already") as caught:
            client.chat.completions.create(**asked)
        assert caught.value.response.headers["retry-after"] == "1"
        finished: list[list[object]] = [[], []]

        def read(number):
            try:
                finished[number] += [chunk.choices[0].finish_reason for chunk in streams[number]]
            except openai.APIError as error:
                finished[number].append(error.message)

        readers = [threading.Thread(target=read, args=(number,)) for number in (0, 1)]
        for reader in readers:
            reader.start()
        process.send_signal(signal.SIGTERM)
        for reader in readers:
            reader.join(60)
        # What was being written is whole; what waited is told.
        assert finished[0][-1] == "length"
        assert finished[1] == ["the server is shutting down"]
        assert process.wait(30) == 0


def test_ctrl_c_does_not_wait_for_long(template):
    with served("demo", "--template", template, "--grace", "0.1") as (url, process):
        client = openai.OpenAI(base_url=f"{url}/v1", api_key="x", max_retries=0, timeout=60)
        stream = client.chat.completions.create(
            model="demo-llama", messages=HELLO, stream=True, logit_bias={"0": -100}, n=16, temperature=1
        )
        next(iter(stream))
        process.send_signal(signal.SIGINT)
        with pytest.raises(openai.APIError, match="the server is shutting down"):
            list(stream)
        assert process.wait(20) == 0


@pytest.mark.parametrize(
    ("args", "code", "says"),
    [
        (
            ("demo", "--host", "0.0.0.0"),
            2,
            "--host: found '0.0.0.0'; expected an address of this machine alone, or",
        ),
        (("demo", "--host", "example.org"), 2, "Set QFORMATS_API_KEY, so that nobody else uses the models"),
        (("demo", "--try", "nope"), 2, "no format 'nope'"),
        (("./not-here",), 3, "./not-here: no such file or folder"),
        (("demo", "--dtype", "int8"), 2, "--dtype: found 'int8'; expected f32, f16 or bf16"),
    ],
)
def test_mistakes(capsys, args, code, says, monkeypatch):
    monkeypatch.delenv("QFORMATS_API_KEY", raising=False)
    done = call(capsys, "serve", *args)
    assert (done.code, done.out) == (code, "")
    assert says in done.err


def test_a_port_that_is_taken(capsys):
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        done = call(capsys, "serve", "demo", "--port", str(port), "--device", "cpu")
    assert done.code == 4
    assert re.search(
        rf"127.0.0.1:{port}: cannot be listened at \(Address already in use\)\. Choose another", done.err
    )


def test_without_the_extra(tmp_path):
    (tmp_path / "fastapi.py").write_text("raise ModuleNotFoundError('no', name='fastapi')")
    code = (
        f"import sys; sys.path.insert(0, {str(tmp_path)!r}); sys.argv = ['qformats', 'serve', 'demo']\n"
        "from qformats.cli import main\n"
        "try: main()\n"
        "except SystemExit as stop: code = stop.code\n"
        "assert 'torch' not in sys.modules\n"
        "sys.exit(code)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert (done.returncode, done.stdout) == (3, "")
    assert (
        done.stderr
        == "qformats: the server: fastapi is not installed. Install it: pip install 'qformats[serve]'.\n"
    )

"""The server as OpenAI's own client sees it."""

from __future__ import annotations

import asyncio
import json
import time
import urllib.error
import urllib.request

import openai
import pytest
import torch
from oracles import hf
from serving.running import resident

import qformats
from qformats.runtime import tokenizer

HELLO = [{"role": "user", "content": "Hello"}]
RENDERED = "user: Hello\nassistant:"


@pytest.fixture(scope="module")
def client(server):
    with openai.OpenAI(base_url=f"{server[0]}/v1", api_key="none", max_retries=0, timeout=60) as found:
        yield found


@pytest.fixture(scope="module")
def words():
    return tokenizer(qformats.open("demo"))


@pytest.fixture(scope="module")
def reference():
    return hf.load(qformats.open("demo").path)


def continued(words, reference, prompt: str, count: int) -> str:
    ids = words(prompt)["input_ids"]
    return words.decode(ids + hf.greedy(reference, ids, count)).removeprefix(words.decode(ids))


def test_models(client):
    listed = client.models.list().data
    assert [each.id for each in listed] == ["talker", "talker@gguf:q4_0", "demo-llama"]
    about = client.models.retrieve("talker@gguf:q4_0").qformats
    assert about["formats"]["gguf:q4_0"] == {"tensors": 29, "bytes": 2506752}
    assert (about["chat"], about["context"], about["device"]) == (True, 512, "cpu")
    assert listed[2].qformats["chat"] is False


def test_chat(client, words, reference):
    expected = continued(words, reference, RENDERED, 20)
    done = client.chat.completions.create(model="talker", messages=HELLO, max_tokens=20)
    (choice,) = done.choices
    assert (choice.message.role, choice.message.content, choice.finish_reason) == (
        "assistant",
        expected,
        "length",
    )
    assert done.usage.prompt_tokens == len(words(RENDERED)["input_ids"])
    assert (done.usage.completion_tokens, done.object) == (20, "chat.completion")
    parts = [{"type": "text", "text": "Hel"}, {"type": "text", "text": "lo"}]
    again = client.chat.completions.create(
        model="talker", messages=[{"role": "user", "content": parts}], max_completion_tokens=20, temperature=0
    )
    assert again.choices[0].message.content == expected
    assert again.usage.prompt_tokens_details.cached_tokens > 0


@pytest.mark.parametrize("usage", [True, False])
def test_streams(client, words, reference, usage):
    expected = continued(words, reference, RENDERED, 20)
    more = {"stream_options": {"include_usage": True}} if usage else {}
    chunks = list(
        client.chat.completions.create(model="talker", messages=HELLO, max_tokens=20, stream=True, **more)
    )
    deltas = [chunk.choices[0].delta for chunk in chunks if chunk.choices]
    assert deltas[0].role == "assistant"
    assert "".join(delta.content or "" for delta in deltas) == expected
    assert len(deltas) > 10
    finishes = [chunk.choices[0].finish_reason for chunk in chunks if chunk.choices]
    assert finishes == [None] * (len(deltas) - 1) + ["length"]
    assert len({chunk.id for chunk in chunks}) == 1
    if usage:
        assert chunks[-1].choices == []
        assert chunks[-1].usage.completion_tokens == 20
        assert all(chunk.usage is None for chunk in chunks[:-1])
    else:
        assert all(chunk.usage is None for chunk in chunks)


@pytest.mark.parametrize("stream", [True, False])
def test_probabilities(client, words, reference, stream):
    asked = {"logprobs": True, "top_logprobs": 2, "max_tokens": 6, "temperature": 1.2, "seed": 5}
    done = client.chat.completions.create(model="talker", messages=HELLO, stream=stream, **asked)
    choices = [chunk.choices[0] for chunk in done] if stream else done.choices
    content = [token for choice in choices if choice.logprobs for token in choice.logprobs.content]
    text = "".join(choice.delta.content or "" for choice in choices) if stream else choices[0].message.content
    assert b"".join(bytes(token.bytes) for token in content).decode() == text
    ids = words(RENDERED)["input_ids"]
    new = [token.id for token in content]
    with torch.no_grad():
        rows = torch.log_softmax(reference(torch.tensor([ids + new])).logits[0, len(ids) - 1 : -1], -1)
    for row, token in zip(rows, content, strict=True):
        assert token.logprob == pytest.approx(float(row[token.id]), abs=1e-4)
        assert [each.logprob for each in token.top_logprobs] == pytest.approx(
            row.topk(2)[0].tolist(), abs=1e-4
        )


def test_several_choices_and_seeds(client):
    asked = {"max_tokens": 8, "temperature": 1.4, "n": 3}
    done = client.chat.completions.create(model="talker", messages=HELLO, **asked)
    assert [choice.index for choice in done.choices] == [0, 1, 2]
    assert len({choice.message.content for choice in done.choices}) > 1
    assert done.usage.completion_tokens == 24
    seeded = [
        client.chat.completions.create(model="talker", messages=HELLO, seed=3, **{**asked, "n": 1})
        for _ in "ab"
    ]
    assert len({each.choices[0].message.content for each in seeded}) == 1


@pytest.mark.parametrize("stream", [True, False])
def test_stop_texts(client, words, reference, stream):
    whole = continued(words, reference, RENDERED, 20)
    stop = whole[6:14]
    done = client.chat.completions.create(
        model="talker", messages=HELLO, max_tokens=40, stop=["never", stop], stream=stream
    )
    if stream:
        choices = [chunk.choices[0] for chunk in done]
        text = "".join(choice.delta.content or "" for choice in choices)
    else:
        choices = done.choices
        text = choices[0].message.content
    assert (text, choices[-1].finish_reason) == (whole[: whole.index(stop)], "stop")


def test_completions(client, words, reference):
    prompts = ["The United", "In the year"]
    expected = [continued(words, reference, prompt, 8) for prompt in prompts]
    done = client.completions.create(model="demo-llama", prompt=prompts, max_tokens=8, logprobs=2)
    assert [choice.text for choice in done.choices] == expected
    for choice in done.choices:
        assert "".join(choice.logprobs.tokens) == choice.text
        assert [
            choice.text[at:].startswith(token)
            for at, token in zip(choice.logprobs.text_offset, choice.logprobs.tokens, strict=True)
        ] == [True] * 8
        assert all(len(each) == 2 for each in choice.logprobs.top_logprobs)
    ids = client.completions.create(
        model="demo-llama", prompt=words(prompts[0])["input_ids"], max_tokens=8, echo=True
    )
    assert ids.choices[0].text == prompts[0] + expected[0]
    stream = client.completions.create(model="demo-llama", prompt=prompts[1], max_tokens=8, stream=True)
    assert "".join(chunk.choices[0].text for chunk in stream) == expected[1]


def test_what_a_template_may_use(client, words, reference):
    loud = client.chat.completions.create(
        model="talker", messages=HELLO, max_tokens=5, extra_body={"chat_template_kwargs": {"shout": True}}
    )
    expected = continued(words, reference, "user: Hello\nLOUD assistant:", 5)
    assert loud.choices[0].message.content == expected


LONG = [{"role": "user", "content": "word " * 600}]


@pytest.mark.parametrize(
    ("changes", "kind", "status", "says"),
    [
        ({"model": "nope"}, openai.NotFoundError, 404, "there is no model 'nope'; there are talker, "),
        (
            {"model": "demo-llama"},
            openai.BadRequestError,
            400,
            "a model without a chat template; expected a chat",
        ),
        ({"messages": []}, openai.BadRequestError, 400, "messages: List should have at least 1 item"),
        (
            {"messages": LONG},
            openai.BadRequestError,
            400,
            "tokens; expected fewer than the model's context of 512",
        ),
        ({"messages": [{"role": "owl", "content": "x"}]}, openai.BadRequestError, 400, "fails: no role owl"),
        (
            {"messages": [{"role": "user", "content": "x" * 30000}]},
            openai.APIStatusError,
            413,
            "larger than 20000",
        ),
        (
            {"temperature": -1},
            openai.BadRequestError,
            400,
            "temperature: found -1.0; expected a number from 0",
        ),
        ({"top_p": 0}, openai.BadRequestError, 400, "top_p: found 0.0; expected a number above 0"),
        (
            {"max_tokens": 0},
            openai.BadRequestError,
            400,
            "max_tokens: Input should be greater than or equal to 1",
        ),
        ({"n": 99}, openai.BadRequestError, 400, "n: Input should be less than or equal to 16"),
        ({"top_logprobs": 2}, openai.BadRequestError, 400, "top_logprobs needs logprobs: true"),
        ({"tools": [{"type": "function"}]}, openai.BadRequestError, 400, "tools cannot be called here"),
        ({"response_format": {"type": "json_object"}}, openai.BadRequestError, 400, "answers are text"),
        (
            {"messages": [{"role": "user", "content": [{"type": "image_url", "image_url": {"url": "x"}}]}]},
            *(openai.BadRequestError, 400, "models here read text alone; found a part of type 'image_url'"),
        ),
    ],
)
@pytest.mark.parametrize("stream", [False, True])
def test_mistakes(client, changes, kind, status, says, stream):
    """Errors have OpenAI's shape; those of a stream come before it begins."""
    with pytest.raises(kind) as caught:
        client.chat.completions.create(
            **{"model": "talker", "messages": HELLO, "max_tokens": 2, "stream": stream, **changes}
        )
    error = caught.value
    assert error.status_code == status
    assert says in error.message
    assert error.body["type"] == "invalid_request_error"
    assert {"message", "type", "param", "code"} == error.body.keys()


def send(url, data=None, **headers):
    """Status, headers and content of a plain request."""
    request = urllib.request.Request(
        url, data, {key.replace("_", "-"): value for key, value in headers.items()}
    )
    try:
        with urllib.request.urlopen(request, timeout=30) as response:
            return response.status, response.headers, response.read()
    except urllib.error.HTTPError as error:
        with error:
            return error.code, error.headers, error.read()


BODY = json.dumps({"model": "talker", "messages": HELLO, "max_tokens": 1}).encode()


@pytest.mark.parametrize(
    ("path", "data", "headers", "status", "says"),
    [
        ("/nope", None, {}, 404, "there is nothing at this address"),
        ("/v1/chat/completions", None, {}, 405, "this address does not take this method"),
        ("/v1/chat/completions", BODY, {"Content_Type": "text/plain"}, 415, "the body must be JSON"),
        ("/v1/chat/completions", b"{", {"Content_Type": "application/json"}, 400, "Invalid JSON"),
        ("/v1/chat/completions", b"[" * 9000, {"Content_Type": "application/json"}, 400, "Invalid JSON"),
        ("/v1/models", None, {"Host": "evil.example"}, 403, "this server is not called 'evil.example'"),
        (
            "/v1/models",
            None,
            {"Origin": "https://evil.example"},
            403,
            "pages from https://evil.example may not",
        ),
        ("/v1/models", None, {"Origin": "null"}, 403, "pages from null may not call"),
    ],
)
def test_requests_that_are_none_of_its_business(server, path, data, headers, status, says):
    code, given, content = send(server[0] + path, data, **headers)
    assert code == status
    assert says in json.loads(content)["error"]["message"]
    assert "access-control-allow-origin" not in given
    assert given["content-security-policy"].startswith("default-src 'none'")


def test_who_goes_away_is_not_waited_for(server, client):
    """A stream that is closed, and a request that is given up, end their answers."""
    stream = client.chat.completions.create(model="talker", messages=HELLO, stream=True, temperature=1)
    next(iter(stream))
    stream.close()
    with pytest.raises(openai.APITimeoutError):
        client.with_options(timeout=0.3).chat.completions.create(
            model="talker", messages=HELLO, temperature=1
        )
    end = time.monotonic() + 10
    while client.models.retrieve("talker").qformats["active"] and time.monotonic() < end:
        time.sleep(0.05)
    assert client.models.retrieve("talker").qformats["active"] == 0


def test_64_clients_lose_nothing_and_memory_stays_flat(server, words, reference):
    """Each gets the answer that it would get alone."""
    url, process = server
    wanted = 16

    async def everyone():
        async with openai.AsyncOpenAI(
            base_url=f"{url}/v1", api_key="none", max_retries=0, timeout=120
        ) as client:

            async def one(number):
                said = [{"role": "user", "content": f"Hello {number % 8}"}]
                stream = await client.chat.completions.create(
                    model="talker", messages=said, max_tokens=wanted, stream=True
                )
                return "".join([chunk.choices[0].delta.content or "" async for chunk in stream])

            return await asyncio.gather(*map(one, range(64)))

    expected = [continued(words, reference, f"user: Hello {n}\nassistant:", wanted) for n in range(8)]
    held = []
    for _ in range(3):
        assert asyncio.run(everyone()) == expected * 8
        held.append(resident(process))
    # Measured: within 2 MB from the second round on.
    assert held[2] - held[1] < 16e6

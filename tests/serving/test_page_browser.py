"""The page in a browser, with real models behind it: answers, two side by side, errors, a phone, the keyboard."""

from __future__ import annotations

import json
import re
from contextlib import contextmanager

import pytest
from compare.page_browser import CONTRAST, launched
from playwright.sync_api import expect
from serving.running import served

QUESTION = "Good morrow, my lord."
HOSTILE = "<img src=x onerror='window.hacked = 1'><script>window.hacked = 1</script>"


@pytest.fixture(scope="module")
def browser():
    with launched() as found:
        yield found


@contextmanager
def opened(browser, url, scheme="light", width=1280, height=860):
    """The page, what the browser complains about, and what it asks for."""
    context = browser.new_context(
        color_scheme=scheme, viewport={"width": width, "height": height}, reduced_motion="reduce"
    )
    try:
        page = context.new_page()
        page.set_default_timeout(20_000)
        expect.set_options(timeout=20_000)
        complaints, requests = [], []
        page.on("console", lambda message: complaints.append(f"{message.type}: {message.text}"))
        page.on("pageerror", lambda error: complaints.append(f"error: {error}"))
        page.on("request", lambda request: requests.append(request.url))
        page.goto(url)
        page.locator("#cards li").first.wait_for()
        yield page, complaints, requests
    finally:
        context.close()


def settle(page, **settings):
    """Set what is in the settings."""
    page.evaluate("document.getElementById('settings').open = true")
    for key, value in settings.items():
        page.fill(f"#{key}", str(value))
    page.evaluate("document.getElementById('settings').open = false")


def ask(page, question=QUESTION):
    page.fill("#ask", question)
    page.keyboard.press("Enter")


def test_a_conversation(browser, server):
    """The answer comes in pieces; the next turn knows it; nothing is asked of anybody else."""
    with opened(browser, server[0]) as (page, complaints, requests):
        assert page.locator("#cards b").all_inner_texts() == ["talker", "talker@gguf:q4_0", "demo-llama"]
        assert (
            page.locator("#cards span")
            .nth(1)
            .inner_text()
            .startswith("gguf:q4_0, gguf:q6_k · 2.9 MB · 512 tokens")
        )
        settle(page, max_tokens=12, system="Be brief.")
        ask(page)
        expect(page.locator(".question")).to_have_text(QUESTION)
        expect(page.locator(".numbers")).to_contain_text("weights")
        told = page.locator(".numbers").inner_text()
        assert re.search(
            r"[\d.]+ tokens/s\s+12 tokens\s+[\d.]+ m?s to the first\s+19\.9 MB weights\s+[\d.]+ [kM]B cache",
            told,
        )
        first = page.locator(".answer .text").inner_text()
        with page.expect_request("**/v1/chat/completions") as caught:
            ask(page, "And then?")
        messages = caught.value.post_data_json["messages"]
        assert [each["role"] for each in messages] == ["system", "user", "assistant", "user"]
        assert messages[2]["content"].strip() == first.strip()
        expect(page.locator(".numbers")).to_have_count(2)
        expect(page.locator("#send")).to_be_visible()
        page.click("#anew")
        assert page.locator(".turn").count() == 0
        assert page.locator("h1").is_visible()
        assert {url.startswith(server[0]) or url.startswith("data:") for url in requests} == {True}
        assert complaints == []


def test_two_models_side_by_side(browser, server):
    """Both answer the same question; the first token that differs is marked in both, and named."""
    with opened(browser, server[0]) as (page, complaints, _):
        page.click("#compare")
        assert page.locator("#second").input_value() == "talker@gguf:q4_0"
        settle(page, max_tokens=40)
        ask(page)
        expect(page.locator("#send")).to_be_visible()
        answers = page.locator(".answer .text").all_inner_texts()
        assert answers[0] != answers[1]
        same = [each.strip() for each in page.locator(".answer .text > span:first-child").all_inner_texts()]
        assert same[0] == same[1]
        assert all(answer.strip().startswith(same[0]) for answer in answers)
        parted = page.locator(".parted").all_text_contents()
        told = page.locator(".verdict").text_content()
        found = re.fullmatch(r"The same for \d+ tokens?, then (.+) \(\d+ %\) beside (.+) \(\d+ %\)\.", told)
        assert found, told
        assert found[1] != found[2]
        seen = [found[n].replace("␣", " ").replace("⏎", "\n") for n in (1, 2)]
        assert [parted[n].startswith(seen[n]) for n in (0, 1)] == [True, True]
        boxes = [page.locator(".answer").nth(n).bounding_box() for n in (0, 1)]
        assert boxes[0]["y"] == boxes[1]["y"]
        assert boxes[0]["x"] + boxes[0]["width"] < boxes[1]["x"]
        # A model beside itself never parts from itself.
        page.select_option("#second", "talker")
        ask(page)
        expect(page.locator(".verdict")).to_have_text("The same, all 40 tokens.")
        assert complaints == []


def test_models_that_continue_text(browser, server):
    with opened(browser, server[0]) as (page, complaints, _):
        page.select_option("#first", "demo-llama")
        settle(page, max_tokens=8)
        ask(page, "The United")
        expect(page.locator(".answer .text")).to_have_text(re.compile("^States"))
        expect(page.locator("#send")).to_be_visible()
        assert complaints == []


@pytest.mark.parametrize("how", ["button", "Escape"])
def test_stopping(browser, server, how):
    with opened(browser, server[0]) as (page, _, _):
        settle(page, max_tokens=400)
        ask(page)
        expect(page.locator(".answer .text")).not_to_be_empty()
        if how == "button":
            page.click("#stop")
        else:
            page.keyboard.press("Escape")
        expect(page.locator(".numbers")).to_contain_text("Stopped by you")
        expect(page.locator("#send")).to_be_visible()
        assert page.locator("#ask").evaluate("box => box === document.activeElement")


def test_errors_say_what_is_wrong_and_can_be_tried_again(browser, server):
    with opened(browser, server[0]) as (page, _, _):
        ask(page, "word " * 600)
        failed = page.locator(".failed")
        expect(failed).to_contain_text("expected fewer than the model's context of 512")
        page.route("**/v1/chat/completions", lambda route: route.abort())
        page.click("#anew")
        settle(page, max_tokens=4)
        ask(page)
        expect(failed).to_contain_text("The server cannot be reached. Is it still running?")
        page.unroute("**/v1/chat/completions")
        failed.locator("button").click()
        expect(page.locator(".numbers")).to_contain_text("weights")
        assert failed.count() == 0


def test_what_is_written_stays_text(browser, server):
    """Of the question, of a model, and of a server's error."""
    with opened(browser, server[0]) as (page, complaints, _):
        event = json.dumps({"choices": [{"delta": {"content": HOSTILE}}]})
        body = f"data: {event}\n\ndata: [DONE]\n\n"
        page.route(
            "**/v1/chat/completions", lambda route: route.fulfill(body=body, content_type="text/event-stream")
        )
        ask(page, HOSTILE)
        expect(page.locator(".answer .text")).to_have_text(HOSTILE)
        assert page.locator(".question").inner_text() == HOSTILE
        assert page.locator("main img, main script").count() == 0
        assert page.evaluate("window.hacked") is None
        assert complaints == []


@pytest.mark.parametrize(("scheme", "width"), [("light", 1280), ("dark", 360)])
def test_themes_and_widths(browser, server, scheme, width):
    """Text stands out (WCAG AA), nothing scrolls sideways, and the question stays in view."""
    with opened(browser, server[0], scheme, width, 700) as (page, _, _):
        page.click("#compare")
        settle(page, max_tokens=30)
        ask(page, QUESTION + " unbreakable" * 4 + "e" * 200)
        expect(page.locator(".verdict")).to_be_visible()
        expect(page.locator("#send")).to_be_visible()
        page.evaluate("document.getElementById('settings').open = true")
        assert page.evaluate("document.documentElement.scrollWidth") == width
        # The answers scroll; the page itself does not, not even by what only screen readers see.
        assert page.evaluate("document.documentElement.scrollHeight") == 700
        assert page.evaluate(
            "document.querySelector('main').scrollWidth <= document.querySelector('main').clientWidth"
        )
        box = page.locator("#ask").bounding_box()
        assert box["y"] + box["height"] <= 700
        page.fill("#ask", "x")
        for _ in "ab":
            found = page.evaluate(CONTRAST)
            assert len(found) > 10
            assert [each for each in found if each["contrast"] < 4.5] == []
            page.click("#theme")
        if width == 360:
            ys = [page.locator(".answer").nth(n).bounding_box()["y"] for n in (0, 1)]
            assert ys[0] < ys[1]


def test_the_keyboard_reaches_everything(browser, server):
    with opened(browser, server[0]) as (page, _, _):
        page.fill("#ask", "one")
        page.keyboard.press("Shift+Enter")
        assert page.locator("#ask").input_value() == "one\n"
        page.evaluate("document.activeElement.blur()")
        reached = set()
        for _ in range(14):
            page.keyboard.press("Tab")
            state = page.evaluate(
                "(() => { const e = document.activeElement; const o = getComputedStyle(e);"
                " return [e.id || e.className || e.tagName || '', o.outlineStyle !== 'none' || e.id === 'ask']; })()"
            )
            assert state[1] or state[0] == "BODY", state
            reached.add(state[0])
        assert {"skip", "first", "compare", "theme", "SUMMARY", "ask", "send"} <= reached


def test_a_key_is_asked_for(browser, tmp_path):
    file = tmp_path / "t.jinja"
    file.write_text("{{ messages[-1].content }}")
    with served("demo", "--template", file, QFORMATS_API_KEY="open sesame") as (url, _):
        context = browser.new_context()
        page = context.new_page()
        page.set_default_timeout(20_000)
        page.goto(url)
        expect(page.locator("#lead")).to_contain_text("an API key is needed")
        expect(page.locator("#key")).to_be_focused()
        page.keyboard.type("open sesame")
        page.keyboard.press("Tab")
        page.locator("#cards li").first.wait_for()
        context.close()

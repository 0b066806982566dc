"""A page to chat with a model on this machine: ``python chat_page.py MODEL``, then open http://127.0.0.1:8000.

MODEL is anything that qformats opens and that has a chat template: a folder, a GGUF file, ranks. Only this machine can
reach the page. One answer is written at a time.
"""

from __future__ import annotations

import argparse
import json
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

import qformats
from qformats.runtime import tokenizer

PAGE = """<!doctype html><meta charset="utf-8"><title>Chat</title>
<style>body{font:16px sans-serif;max-width:44em;margin:2em auto}pre{white-space:pre-wrap}input{width:100%}</style>
<div id="log"></div><form><input autofocus placeholder="Message"></form><script>
const log = document.querySelector("#log"), field = document.querySelector("input"), messages = [];
function line(who) { const p = document.createElement("pre"); p.textContent = who; log.append(p); return p; }
document.querySelector("form").onsubmit = async event => {
  event.preventDefault();
  messages.push({role: "user", content: field.value});
  line("You: " + field.value); field.value = "";
  const p = line("Model: "), reply = await fetch("/chat", {method: "POST", body: JSON.stringify(messages)});
  const reader = reply.body.pipeThrough(new TextDecoderStream()).getReader();
  let text = "";
  for (let part; !(part = await reader.read()).done;) { text += part.value; p.textContent = "Model: " + text; }
  messages.push({role: "assistant", content: text});
};
</script>"""


class Chat:
    """A model that answers, one conversation at a time."""

    def __init__(self, path: str, device: str | None = None, most: int = 512) -> None:
        self.model: Any = qformats.load_model(path, device=device)
        self.tokenizer: Any = tokenizer(qformats.open(path))
        self.most, self.lock = most, threading.Lock()

    def answer(self, messages: list[dict[str, str]]) -> Any:
        """Yield the pieces of an answer to a conversation as they are written."""
        from transformers import TextIteratorStreamer

        with self.lock:
            inputs = self.tokenizer.apply_chat_template(
                messages, add_generation_prompt=True, return_tensors="pt", return_dict=True
            ).to(self.model.device)
            streamer = TextIteratorStreamer(self.tokenizer, skip_prompt=True, skip_special_tokens=True)
            how = {**inputs, "streamer": streamer, "max_new_tokens": self.most, "do_sample": False}
            worker = threading.Thread(target=self.model.generate, kwargs=how)
            worker.start()
            yield from streamer
            worker.join()


def serve(chat: Chat, port: int) -> ThreadingHTTPServer:
    """Make the server of the page; ``serve_forever`` runs it."""

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            self._begin("text/html; charset=utf-8")
            self.wfile.write(PAGE.encode())

        def do_POST(self) -> None:
            messages = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
            self._begin("text/plain; charset=utf-8")
            for piece in chat.answer(messages):
                self.wfile.write(piece.encode())
                self.wfile.flush()

        def _begin(self, kind: str) -> None:
            self.send_response(200)
            self.send_header("Content-Type", kind)
            self.end_headers()

        def log_message(self, *_: Any) -> None:
            """Keep the terminal quiet."""

    return ThreadingHTTPServer(("127.0.0.1", port), Handler)


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("model")
    parser.add_argument("--device")
    parser.add_argument("--port", type=int, default=8000)
    given = parser.parse_args()
    server = serve(Chat(given.model, given.device), given.port)
    print(f"http://127.0.0.1:{server.server_port}")
    server.serve_forever()

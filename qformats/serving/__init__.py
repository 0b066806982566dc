"""Models behind an OpenAI-compatible server, with a web page to talk to them."""

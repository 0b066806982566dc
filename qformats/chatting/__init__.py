"""Talking with a model: prompts, tokens one by one as text, many answers at a time."""

"""Quantized LLM weights: one registry for every format (public API: filled in below)."""

"""Decoding on a GPU: one launch for a token, without Python in between."""

"""Tokenizers of the GLM models: the tokenizer.json and chat template that their repositories have only as code.

=============  ==============================================  ==============================
model          vocabulary in its repository                    around every text
=============  ==============================================  ==============================
GLM-130B       ``ice_text.model``, SentencePiece unigram       ``text [gMASK] <sop>``
ChatGLM-6B     ``ice_text.model``, SentencePiece unigram       ``text [gMASK] <sop>``
ChatGLM2, 3    ``tokenizer.model``, SentencePiece BPE          ``[gMASK] sop text``
GLM-4          ``tokenizer.model``, ranks of tiktoken          ``[gMASK] <sop> text``
=============  ==============================================  ==============================
"""

from __future__ import annotations

from .complete import ICE_TEXT, completed

__all__ = ["ICE_TEXT", "completed"]

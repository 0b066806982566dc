"""Run a GGUF file in the real llama.cpp, on the CPU, as exactly as it can.

llama.cpp's defaults are tuned for speed: a 16-bit key-value cache, flash attention and repacked weights. With
them an F32 file differs from Transformers by some 5e-3 in the logits, without them by some 1e-5 (2e-3 for
GPT-2, whose GELU llama.cpp looks up in a 16-bit table).
"""

from __future__ import annotations

import atexit
import ctypes as c
import functools
from collections.abc import Sequence
from os import PathLike
from typing import Any

import numpy as np
from numpy.typing import NDArray

from oracles import _llama_abi as abi

__all__ = ["LlamaCpp", "LlamaCppError"]

_KV_TYPES = {"f32": abi.GGML_F32, "f16": abi.GGML_F16, "bf16": abi.GGML_BF16}
_VOCAB_TYPES = {0: "none", 1: "spm", 2: "bpe", 3: "wpm", 4: "ugm", 5: "rwkv", 6: "plamo2"}
_IMAGE = 1
"""Of ``enum mtmd_input_chunk_type``."""
_log: list[str] = []


class LlamaCppError(RuntimeError):
    """llama.cpp refused a file or a call; the message ends with what it logged."""


def _append(_level: int, text: bytes, _user_data: object) -> None:
    _log.append(text.decode("utf-8", "replace"))


# C keeps only the address: this name keeps the object.
_keep_log = abi.LOG_CALLBACK(_append)


@functools.cache
def _library() -> Any:
    library = abi.load()
    library.llama_log_set(_keep_log, None)
    # Logging during the interpreter's shutdown would call into Python that is gone.
    atexit.register(library.llama_log_set, abi.LOG_CALLBACK(0), None)
    return library


class LlamaCpp:
    """One model in llama.cpp.

    Parameters
    ----------
    path : path-like
        A GGUF file; of a split model, the first shard.
    n_ctx : int
        Most positions of one call.
    kv_type : {"f32", "f16", "bf16"}
        Type of the key-value cache.
    flash_attention : bool
        Use the fused attention kernel, which rounds differently.
    threads : int
        CPU threads. Several wait for each other in busy loops, which on cores that other tests keep busy takes many
        times as long as one thread alone.
    vocab_only : bool
        Load metadata and tokenizer without any weight; `logits` and `greedy` are then refused.
    adapter : path-like, optional
        A GGUF file of a LoRA adapter, as ``--lora`` takes it.
    watch : callable, optional
        ``cb_eval`` of the context: ``(address of the tensor, whether only asked, user data) -> bool``.
    embeddings : bool
        Make embeddings of whole texts, pooled as the file says.

    Raises
    ------
    LlamaCppError
        If llama.cpp does not load the file.
    """

    def __init__(
        self,
        path: str | PathLike[str],
        *,
        n_ctx: int = 512,
        kv_type: str = "f32",
        flash_attention: bool = False,
        threads: int = 1,
        vocab_only: bool = False,
        adapter: str | PathLike[str] | None = None,
        watch: abi.EvalCallback | None = None,
        embeddings: bool = False,
    ) -> None:
        self._lib = _library()
        self._model: int | None = None
        self._context: int | None = None
        self.path, self.n_ctx = str(path), n_ctx
        _log.clear()
        model = self._lib.llama_model_default_params()
        model.use_extra_bufts = False
        model.check_tensors = True
        model.vocab_only = vocab_only
        self._model = self._lib.llama_model_load_from_file(self.path.encode(), model)
        if not self._model:
            raise self._error("llama.cpp does not load the file")
        self._vocab = self._lib.llama_model_get_vocab(self._model)
        self.n_vocab: int = self._lib.llama_vocab_n_tokens(self._vocab)
        self.load_log = "".join(_log)
        if vocab_only:
            return
        context = self._lib.llama_context_default_params()
        context.n_ctx = context.n_batch = context.n_ubatch = n_ctx
        context.n_threads = context.n_threads_batch = threads
        context.type_k = context.type_v = _KV_TYPES[kv_type]
        context.flash_attn_type = int(flash_attention)
        context.embeddings = embeddings
        if watch is not None:
            # C keeps only the address.
            self._watch = abi.EVAL_CALLBACK(watch)
            context.cb_eval = c.cast(self._watch, c.c_void_p)
        self._context = self._lib.llama_init_from_model(self._model, context)
        if not self._context:
            error = self._error("llama.cpp makes no context for the file")
            self.close()
            raise error
        if adapter is not None:
            self._apply(str(adapter))

    def __enter__(self) -> LlamaCpp:
        return self

    def __exit__(self, *_exception: object) -> None:
        self.close()

    def close(self) -> None:
        """Free the context and the model; again does nothing."""
        if self._context:
            self._lib.llama_free(self._context)
        if self._model:
            self._lib.llama_model_free(self._model)
        self._context = self._model = None

    def _apply(self, adapter: str) -> None:
        # The model frees it.
        found = self._lib.llama_adapter_lora_init(self._model, adapter.encode())
        if not found or self._lib.llama_set_adapters_lora(
            self._context, (c.c_void_p * 1)(found), 1, (c.c_float * 1)(1.0)
        ):
            error = self._error(f"llama.cpp does not apply {adapter}")
            self.close()
            raise error

    def logits(self, ids: Sequence[int]) -> NDArray[np.float32]:
        """Logits at every position: float32 ``[len(ids), n_vocab]``."""
        self._forget()
        return self._decode(ids, 0, every=True)

    def embedding(self, ids: Sequence[int]) -> NDArray[np.float32]:
        """What a model that makes embeddings makes of a text: float32 ``[width]``, not normalized."""
        batch = self._lib.llama_batch_init(len(ids), 0, 1)
        try:
            batch.n_tokens = len(ids)
            for i, token in enumerate(ids):
                batch.token[i], batch.pos[i] = token, i
                batch.n_seq_id[i], batch.seq_id[i][0], batch.logits[i] = 1, 0, True
            _log.clear()
            status = self._lib.llama_encode(self._context, batch)
        finally:
            self._lib.llama_batch_free(batch)
        if status != 0:
            raise self._error(f"llama_encode returned {status}")
        values = self._lib.llama_get_embeddings_seq(self._context, 0)
        if not values:
            raise self._error("llama.cpp pools no embedding")
        return np.ctypeslib.as_array(values, shape=(self._lib.llama_model_n_embd(self._model),)).copy()

    def log_probs(self, ids: Sequence[int]) -> NDArray[np.float32]:
        """Natural logarithms of the next-token probabilities: float32 ``[len(ids), n_vocab]``."""
        logits = self.logits(ids).astype(np.float64)
        logits -= logits.max(axis=1, keepdims=True)
        return np.asarray(logits - np.log(np.exp(logits).sum(axis=1, keepdims=True)), np.float32)

    def image_embedding(
        self, projector: str | PathLike[str], pixels: NDArray[np.uint8], width: int
    ) -> NDArray[np.float32]:
        """What the vision model in the file `projector` (``--mmproj``) makes of an image of its size.

        Parameters
        ----------
        pixels : ndarray
            uint8 ``[height, width, 3]``.
        width : int
            Size of an embedding of the language model.

        Returns
        -------
        ndarray
            float32 ``[tokens, width]``.
        """
        lib = self._lib
        _log.clear()
        lib.mtmd_log_set(_keep_log, None)
        lib.mtmd_helper_log_set(_keep_log, None)
        settings = lib.mtmd_context_params_default()
        settings.n_threads = 1
        vision = lib.mtmd_init_from_file(str(projector).encode(), self._model, settings)
        if not vision:
            raise self._error(f"llama.cpp does not load {projector}")
        chunks = lib.mtmd_input_chunks_init()
        bitmap = lib.mtmd_bitmap_init(pixels.shape[1], pixels.shape[0], pixels.tobytes())
        try:
            marker = lib.mtmd_get_marker(vision)
            text = abi.InputText(marker, len(marker), False, False)
            status = lib.mtmd_tokenize(vision, chunks, c.byref(text), (c.c_void_p * 1)(bitmap), 1)
            if status:
                raise self._error(f"mtmd_tokenize returned {status}")
            every = [lib.mtmd_input_chunks_get(chunks, i) for i in range(lib.mtmd_input_chunks_size(chunks))]
            image = next(each for each in every if lib.mtmd_input_chunk_get_type(each) == _IMAGE)
            if lib.mtmd_encode_chunk(vision, image):
                raise self._error("mtmd_encode_chunk failed")
            shape = (lib.mtmd_input_chunk_get_n_tokens(image), width)
            return np.ctypeslib.as_array(lib.mtmd_get_output_embd(vision), shape=shape).copy()
        finally:
            lib.mtmd_bitmap_free(bitmap)
            lib.mtmd_input_chunks_free(chunks)
            lib.mtmd_free(vision)

    def greedy(self, ids: Sequence[int], n: int) -> list[int]:
        """The `n` most likely ids, one by one, through the key-value cache; end tokens do not stop it."""
        self._forget()
        best: list[int] = []
        logits = self._decode(ids, 0, every=False)
        while len(best) < n:
            best.append(int(logits[-1].argmax()))
            if len(best) < n:
                logits = self._decode(best[-1:], len(ids) + len(best) - 1, every=False)
        return best

    def tokenize(self, text: str, add_special: bool = True, parse_special: bool = True) -> list[int]:
        """Ids of a text; `add_special`: BOS, EOS as the file says; `parse_special`: ``<|im_end|>`` is one."""
        data = text.encode()
        # Negative means: this many would have been written.
        capacity = -self._tokenize(data, None, 0, add_special, parse_special)
        if capacity <= 0:
            return []
        ids = (c.c_int32 * capacity)()
        found = self._tokenize(data, ids, capacity, add_special, parse_special)
        if found < 0:
            raise self._error(f"llama.cpp cannot tokenize {text!r}")
        return list(ids[:found])

    def detokenize(self, ids: Sequence[int], special: bool = True) -> str:
        """Text of ids; `special` also writes control tokens. Bytes that are not UTF-8 become U+FFFD."""
        tokens = (c.c_int32 * len(ids))(*ids)
        capacity = -self._lib.llama_detokenize(self._vocab, tokens, len(ids), None, 0, False, special)
        if capacity <= 0:
            return ""
        text = c.create_string_buffer(capacity)
        found = self._lib.llama_detokenize(self._vocab, tokens, len(ids), text, capacity, False, special)
        if found < 0:
            raise self._error(f"llama.cpp cannot detokenize {list(ids)}")
        return text.raw[:found].decode("utf-8", "replace")

    def metadata(self) -> dict[str, str]:
        """Every KV of the file as llama.cpp prints it."""
        count = self._lib.llama_model_meta_count(self._model)
        key, value = self._lib.llama_model_meta_key_by_index, self._lib.llama_model_meta_val_str_by_index
        return {self._string(key, i): self._string(value, i) for i in range(count)}

    def chat_template(self, name: str | None = None) -> str | None:
        """The default chat template, or the one called `name`; None if the file has none."""
        template = self._lib.llama_model_chat_template(self._model, name.encode() if name else None)
        return None if template is None else template.decode()

    def special_ids(self) -> dict[str, int | bool]:
        """Ids of ``bos``, ``eos``, ``eot``, ``pad`` (-1: none) and the flags ``add_bos`` and ``add_eos``."""
        ids = {
            name: getattr(self._lib, f"llama_vocab_{name}")(self._vocab)
            for name in ("bos", "eos", "eot", "pad")
        }
        flags = {
            name: getattr(self._lib, f"llama_vocab_get_{name}")(self._vocab)
            for name in ("add_bos", "add_eos")
        }
        return ids | flags

    def token(self, token_id: int) -> tuple[bytes, float, int]:
        """Stored text, score and attribute bits (``enum llama_token_attr``) of a token."""
        if not 0 <= token_id < self.n_vocab:
            raise IndexError(f"token {token_id} of {self.n_vocab}")
        return (
            self._lib.llama_vocab_get_text(self._vocab, token_id),
            self._lib.llama_vocab_get_score(self._vocab, token_id),
            self._lib.llama_vocab_get_attr(self._vocab, token_id),
        )

    @property
    def vocab_type(self) -> str:
        """``spm``, ``bpe``, ``wpm``, ``ugm``, ``rwkv``, ``plamo2`` or ``none``."""
        return _VOCAB_TYPES[self._lib.llama_vocab_type(self._vocab)]

    def _tokenize(self, data: bytes, ids: Any, capacity: int, add_special: bool, parse_special: bool) -> int:
        found: int = self._lib.llama_tokenize(
            self._vocab, data, len(data), ids, capacity, add_special, parse_special
        )
        return found

    def _string(self, read: Any, index: int) -> str:
        length = read(self._model, index, None, 0)
        if length < 0:
            raise self._error(f"llama.cpp cannot print metadata entry {index}")
        text = c.create_string_buffer(length + 1)
        read(self._model, index, text, length + 1)
        return text.value.decode("utf-8", "replace")

    def _forget(self) -> None:
        if not self._context:
            raise LlamaCppError(f"{self.path}: no weights are loaded (vocab_only, or closed)")
        self._lib.llama_memory_clear(self._lib.llama_get_memory(self._context), True)

    def _decode(self, ids: Sequence[int], start: int, *, every: bool) -> NDArray[np.float32]:
        if not ids or start + len(ids) > self.n_ctx:
            raise ValueError(
                f"{self.path}: positions {start}..{start + len(ids)} need 1..{self.n_ctx}, set n_ctx"
            )
        outside = [i for i in ids if not 0 <= i < self.n_vocab]
        if outside:
            raise ValueError(f"{self.path}: ids {outside[:8]} lie outside the vocabulary of {self.n_vocab}")
        batch = self._lib.llama_batch_init(len(ids), 0, 1)
        try:
            batch.n_tokens = len(ids)
            for i, token in enumerate(ids):
                batch.token[i], batch.pos[i] = token, start + i
                batch.n_seq_id[i], batch.seq_id[i][0] = 1, 0
                batch.logits[i] = every or i == len(ids) - 1
            _log.clear()
            status = self._lib.llama_decode(self._context, batch)
        finally:
            self._lib.llama_batch_free(batch)
        if status != 0:
            raise self._error(f"llama_decode returned {status}")
        rows = len(ids) if every else 1
        values = self._lib.llama_get_logits(self._context)
        return np.ctypeslib.as_array(values, shape=(rows, self.n_vocab)).copy()

    def _error(self, what: str) -> LlamaCppError:
        # Loading logs every metadata entry; the reason stands at the end.
        tail = "".join(_log).strip().splitlines()[-12:]
        return LlamaCppError("\n  ".join([f"{self.path}: {what}; its log ends with:", *tail]))

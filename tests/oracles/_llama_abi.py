"""The part of llama.cpp's C interface that the oracle calls, as the pinned library lays it out.

Structures follow llama.cpp:include/llama.h of October 2026. Nothing in the library tells a caller the size of
a structure, so `load` reads back the documented default of every field: a shifted field shows there.
"""

from __future__ import annotations

import ctypes as c
import functools
from collections.abc import Callable
from typing import Any

from oracles import package_folder

__all__ = [
    "EVAL_CALLBACK",
    "LOG_CALLBACK",
    "Batch",
    "ContextParams",
    "EvalCallback",
    "InputText",
    "ModelParams",
    "Tensor",
    "load",
]

XLLAMACPP = "2026.10.11549"
GGML_F32, GGML_F16, GGML_BF16 = 0, 1, 30

LOG_CALLBACK = c.CFUNCTYPE(None, c.c_int, c.c_char_p, c.c_void_p)
EVAL_CALLBACK = c.CFUNCTYPE(c.c_bool, c.c_void_p, c.c_bool, c.c_void_p)
EvalCallback = Callable[[int, bool, int | None], bool]


class ModelParams(c.Structure):
    """``struct llama_model_params``."""

    _fields_ = (
        ("devices", c.c_void_p),
        ("tensor_buft_overrides", c.c_void_p),
        ("n_gpu_layers", c.c_int32),
        ("split_mode", c.c_int),
        ("load_mode", c.c_int),
        ("lazy_mode", c.c_int),
        ("main_gpu", c.c_int32),
        ("tensor_split", c.c_void_p),
        ("progress_callback", c.c_void_p),
        ("progress_callback_user_data", c.c_void_p),
        ("kv_overrides", c.c_void_p),
        ("vocab_only", c.c_bool),
        ("check_tensors", c.c_bool),
        ("use_extra_bufts", c.c_bool),
        ("no_host", c.c_bool),
        ("no_alloc", c.c_bool),
        ("load_mtp", c.c_bool),
    )


class ContextParams(c.Structure):
    """``struct llama_context_params``."""

    _fields_ = (
        ("n_ctx", c.c_uint32),
        ("n_batch", c.c_uint32),
        ("n_ubatch", c.c_uint32),
        ("n_seq_max", c.c_uint32),
        ("n_rs_seq", c.c_uint32),
        ("n_outputs_max", c.c_uint32),
        ("n_outputs_max_per_seq", c.c_uint32),
        ("n_threads", c.c_int32),
        ("n_threads_batch", c.c_int32),
        ("ctx_type", c.c_int),
        ("rope_scaling_type", c.c_int),
        ("pooling_type", c.c_int),
        ("attention_type", c.c_int),
        ("flash_attn_type", c.c_int),
        ("rope_freq_base", c.c_float),
        ("rope_freq_scale", c.c_float),
        ("yarn_ext_factor", c.c_float),
        ("yarn_attn_factor", c.c_float),
        ("yarn_beta_fast", c.c_float),
        ("yarn_beta_slow", c.c_float),
        ("yarn_orig_ctx", c.c_uint32),
        ("defrag_thold", c.c_float),
        ("cb_eval", c.c_void_p),
        ("cb_eval_user_data", c.c_void_p),
        ("type_k", c.c_int),
        ("type_v", c.c_int),
        ("abort_callback", c.c_void_p),
        ("abort_callback_data", c.c_void_p),
        # The pinned library has a pointer here, null by default, that llama.h of the same month does not have
        # (read off llama_context_default_params, which writes 168 bytes).
        ("undocumented", c.c_void_p),
        ("embeddings", c.c_bool),
        ("offload_kqv", c.c_bool),
        ("no_perf", c.c_bool),
        ("op_offload", c.c_bool),
        ("swa_full", c.c_bool),
        ("kv_unified", c.c_bool),
        ("samplers", c.c_void_p),
        ("n_samplers", c.c_size_t),
        ("ctx_other", c.c_void_p),
    )


class Batch(c.Structure):
    """``struct llama_batch``."""

    _fields_ = (
        ("n_tokens", c.c_int32),
        ("token", c.POINTER(c.c_int32)),
        ("embd", c.c_void_p),
        ("pos", c.POINTER(c.c_int32)),
        ("n_seq_id", c.POINTER(c.c_int32)),
        ("seq_id", c.POINTER(c.POINTER(c.c_int32))),
        ("logits", c.POINTER(c.c_int8)),
    )


class VisionParams(c.Structure):
    """``struct mtmd_context_params``, as large as it may ever be, of which one field is set."""

    _fields_ = (("before", c.c_char * 20), ("n_threads", c.c_int), ("after", c.c_char * 488))


class InputText(c.Structure):
    """``struct mtmd_input_text``."""

    _fields_ = (
        ("text", c.c_char_p),
        ("text_len", c.c_size_t),
        ("add_special", c.c_bool),
        ("parse_special", c.c_bool),
    )


class Tensor(c.Structure):
    """``struct ggml_tensor``, as far as a callback reads it."""

    _fields_ = (
        ("type", c.c_int),
        ("buffer", c.c_void_p),
        ("ne", c.c_int64 * 4),
        ("nb", c.c_size_t * 4),
        ("op", c.c_int),
        ("op_params", c.c_int32 * 16),
        ("flags", c.c_int32),
        ("src", c.c_void_p * 10),
        ("view_src", c.c_void_p),
        ("view_offs", c.c_size_t),
        ("data", c.c_void_p),
        ("name", c.c_char * 64),
    )


_MODEL_DEFAULTS: dict[str, Any] = {
    name: None for name, kind in ModelParams._fields_ if kind is c.c_void_p
} | {
    "n_gpu_layers": -1,
    "split_mode": 1,
    "load_mode": -1,
    "lazy_mode": 1,
    "main_gpu": 0,
    "vocab_only": False,
    "check_tensors": False,
    "use_extra_bufts": True,
    "no_host": False,
    "no_alloc": False,
    "load_mtp": False,
}
_CONTEXT_DEFAULTS: dict[str, Any] = {
    name: None for name, kind in ContextParams._fields_ if kind is c.c_void_p
} | {
    "n_ctx": 512,
    "n_batch": 2048,
    "n_ubatch": 512,
    "n_seq_max": 1,
    "n_rs_seq": 0,
    "n_outputs_max": 0,
    "n_outputs_max_per_seq": 1,
    "n_threads": 4,
    "n_threads_batch": 4,
    "ctx_type": 0,
    "rope_scaling_type": -1,
    "pooling_type": -1,
    "attention_type": -1,
    "flash_attn_type": -1,
    "rope_freq_base": 0.0,
    "rope_freq_scale": 0.0,
    "yarn_ext_factor": -1.0,
    "yarn_attn_factor": -1.0,
    "yarn_beta_fast": -1.0,
    "yarn_beta_slow": -1.0,
    "yarn_orig_ctx": 0,
    "defrag_thold": -1.0,
    "type_k": GGML_F16,
    "type_v": GGML_F16,
    "embeddings": False,
    "offload_kqv": True,
    "no_perf": True,
    "op_offload": True,
    "swa_full": True,
    "kv_unified": False,
    "n_samplers": 0,
}
_VISION_DEFAULTS: dict[str, Any] = {"n_threads": 4}

_P, _I, _S = c.c_void_p, c.c_int32, c.c_char_p
_SIGNATURES: dict[str, tuple[Any, tuple[Any, ...]]] = {
    "llama_version": (_S, ()),
    "llama_backend_init": (None, ()),
    "llama_log_set": (None, (LOG_CALLBACK, _P)),
    "llama_model_default_params": (ModelParams, ()),
    "llama_context_default_params": (ContextParams, ()),
    "llama_model_load_from_file": (_P, (_S, ModelParams)),
    "llama_model_free": (None, (_P,)),
    "llama_init_from_model": (_P, (_P, ContextParams)),
    "llama_free": (None, (_P,)),
    "mtmd_context_params_default": (VisionParams, ()),
    "mtmd_init_from_file": (_P, (_S, _P, VisionParams)),
    "mtmd_free": (None, (_P,)),
    "mtmd_log_set": (None, (LOG_CALLBACK, _P)),
    "mtmd_helper_log_set": (None, (LOG_CALLBACK, _P)),
    "mtmd_get_marker": (_S, (_P,)),
    "mtmd_bitmap_init": (_P, (c.c_uint32, c.c_uint32, _S)),
    "mtmd_bitmap_free": (None, (_P,)),
    "mtmd_input_chunks_init": (_P, ()),
    "mtmd_input_chunks_free": (None, (_P,)),
    "mtmd_input_chunks_size": (c.c_size_t, (_P,)),
    "mtmd_input_chunks_get": (_P, (_P, c.c_size_t)),
    "mtmd_input_chunk_get_type": (c.c_int, (_P,)),
    "mtmd_input_chunk_get_n_tokens": (c.c_size_t, (_P,)),
    "mtmd_tokenize": (_I, (_P, _P, c.POINTER(InputText), c.POINTER(_P), c.c_size_t)),
    "mtmd_encode_chunk": (_I, (_P, _P)),
    "mtmd_get_output_embd": (c.POINTER(c.c_float), (_P,)),
    "llama_adapter_lora_init": (_P, (_P, _S)),
    "llama_set_adapters_lora": (_I, (_P, c.POINTER(_P), c.c_size_t, c.POINTER(c.c_float))),
    "llama_model_get_vocab": (_P, (_P,)),
    "llama_model_desc": (_I, (_P, _S, c.c_size_t)),
    "llama_model_rope_type": (c.c_int, (_P,)),
    "llama_model_meta_count": (_I, (_P,)),
    "llama_model_meta_key_by_index": (_I, (_P, _I, _S, c.c_size_t)),
    "llama_model_meta_val_str_by_index": (_I, (_P, _I, _S, c.c_size_t)),
    "llama_model_chat_template": (_S, (_P, _S)),
    "llama_get_memory": (_P, (_P,)),
    "llama_memory_clear": (None, (_P, c.c_bool)),
    "llama_batch_init": (Batch, (_I, _I, _I)),
    "llama_batch_free": (None, (Batch,)),
    "llama_decode": (_I, (_P, Batch)),
    "llama_get_logits": (c.POINTER(c.c_float), (_P,)),
    "llama_encode": (_I, (_P, Batch)),
    "llama_get_embeddings_seq": (c.POINTER(c.c_float), (_P, _I)),
    "llama_model_n_embd": (_I, (_P,)),
    "llama_vocab_type": (c.c_int, (_P,)),
    "llama_vocab_n_tokens": (_I, (_P,)),
    "llama_vocab_get_text": (_S, (_P, _I)),
    "llama_vocab_get_score": (c.c_float, (_P, _I)),
    "llama_vocab_get_attr": (c.c_int, (_P, _I)),
    "llama_vocab_bos": (_I, (_P,)),
    "llama_vocab_eos": (_I, (_P,)),
    "llama_vocab_eot": (_I, (_P,)),
    "llama_vocab_pad": (_I, (_P,)),
    "llama_vocab_get_add_bos": (c.c_bool, (_P,)),
    "llama_vocab_get_add_eos": (c.c_bool, (_P,)),
    "llama_vocab_is_eog": (c.c_bool, (_P, _I)),
    "llama_tokenize": (_I, (_P, _S, _I, c.POINTER(_I), _I, c.c_bool, c.c_bool)),
    "ggml_op_name": (_S, (c.c_int,)),
    "llama_detokenize": (_I, (_P, c.POINTER(_I), _I, _S, _I, c.c_bool, c.c_bool)),
}


@functools.cache
def load() -> Any:
    """Load the library once, declare what is called, and check the layout of its structures.

    Returns
    -------
    ctypes.CDLL
        With ``restype`` and ``argtypes`` set.

    Raises
    ------
    RuntimeError
        If the package is another version than the pinned one, or a default is not what the header says.
    """
    folder = package_folder("xllamacpp", "xllamacpp", XLLAMACPP)
    # The extension module exports the whole C interface; opening it as a plain library runs no Python.
    library = c.CDLL(str(folder / "xllamacpp.abi3.so"))
    for name, (result, arguments) in _SIGNATURES.items():
        function = getattr(library, name)
        function.restype, function.argtypes = result, arguments
    for params, expected in (
        (library.llama_model_default_params(), _MODEL_DEFAULTS),
        (library.llama_context_default_params(), _CONTEXT_DEFAULTS),
        (library.mtmd_context_params_default(), _VISION_DEFAULTS),
    ):
        found = {name: getattr(params, name) for name in expected}
        wrong = {name: (found[name], expected[name]) for name in expected if found[name] != expected[name]}
        if wrong:
            raise RuntimeError(
                f"xllamacpp {XLLAMACPP}: {type(params).__name__} does not have the layout of the "
                f"pinned version; field: (found, expected default) = {wrong}. Compare _llama_abi.py with the "
                f"llama.h of this build."
            )
    library.llama_backend_init()
    return library

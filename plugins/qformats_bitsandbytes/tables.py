"""Code tables of bitsandbytes, as the bits of their float32 values.

Source: bitsandbytes:bitsandbytes/functional.py (``get_4bit_type``, ``create_dynamic_map``) and csrc/kernels.cu.
"""

from __future__ import annotations

import struct

__all__ = ["DYNAMIC", "FP4", "FP4_LEVELS", "FP4_THRESHOLDS", "NF4", "NF4_THRESHOLDS"]


def _floats(text: str) -> tuple[float, ...]:
    """Values of float32 numbers given as big-endian hexadecimal."""
    raw = bytes.fromhex(text)
    return struct.unpack(f">{len(raw) // 4}f", raw)


NF4 = _floats(
    "bf800000 bf3239b1 bf066b30 beca32a0 be91a24d be3d353f bdba7871 00000000"
    "3da2faff 3e24cae3 3e7c04dd 3ead033a 3ee1a4b8 3f1007ab 3f3913b3 3f800000"
)
"""Values of codes 0 to 15, ascending."""

NF4_THRESHOLDS = _floats(
    "bf591cd8 bf1c5270 beeb8480 beadea76 be703cec be0d38bc bd3a7871 3d22faff"
    "3df64862 3e5067e0 3e9582d4 3ec753f9 3f006d04 3f248daf 3f5c89da"
)
"""A value's code is the number of these that are smaller than it: middles of neighbours, rounded to float32."""

FP4 = _floats(
    "00000000 3baaaaab 3f2aaaab 3f800000 3eaaaaab 3f000000 3e2aaaab 3e800000"
    "00000000 bbaaaaab bf2aaaab bf800000 beaaaaab bf000000 be2aaaab be800000"
)
"""Values of codes 0 to 15: twelfths 0, 1/16, 8, 12, 4, 6, 2, 3, then their negatives. Code 8 is a second zero."""

FP4_LEVELS = tuple(sorted(set(FP4)))
"""The 15 different values, ascending."""

FP4_THRESHOLDS = _floats("3b2aaab9 3db00000 3e555555 3e955555 3ed55556 3f155550 3f555555")
"""Between the magnitudes 0, 1/192, 1/6, 1/4, 1/3, 1/2, 2/3, 1, as the GPU code spells them in decimal."""

# Magnitudes of codes 128 to 254; code 127 - k is the negative of code 127 + k, code 127 is 0 and code 255 is 1.
_DYNAMIC = _floats(
    """
    3513a3b7 365a1a94 370205ff 37b24206 38378034 388aefb3 38ba1f4b 3923d70b 398ce705 39c7e283 3a016f01 3a1eecc1
    3a3c6a80 3a59e83e 3a7765ff 3aa7ef9d 3af1a9fc 3b1db22d 3b428f5c 3b676c8a 3b8624dd 3b989374 3bab020d 3bbd70a4
    3bcfdf3b 3be24dd3 3bf4bc6a 3c039581 3c0ccccd 3c160418 3c1f3b64 3c3ae148 3c68f5c3 3c8b851f 3ca28f5d 3cb9999a
    3cd0a3d7 3ce7ae15 3cfeb852 3d0ae148 3d166667 3d21eb85 3d2d70a3 3d38f5c3 3d447ae1 3d500000 3d5b851f 3d670a3d
    3d728f5d 3d7e147b 3d84cccd 3d8a8f5d 3d9051eb 3d96147b 3d9bd70a 3da1999a 3da75c2a 3dad1eb8 3db2e148 3db8a3d7
    3dbe6667 3dc428f7 3dc9eb85 3ddb3334 3df80000 3e0a6666 3e18cccd 3e273333 3e35999a 3e440000 3e526666 3e60cccd
    3e6f3333 3e7d9999 3e860000 3e8d3334 3e946666 3e9b999a 3ea2cccc 3eaa0000 3eb13333 3eb86666 3ebf999a 3ec6cccc
    3ece0000 3ed53333 3edc6666 3ee3999a 3eeacccc 3ef20000 3ef93332 3f003333 3f03cccc 3f076666 3f0b0000 3f0e999a
    3f123334 3f15cccd 3f196666 3f1d0000 3f20999a 3f243334 3f27cccd 3f2b6666 3f2f0000 3f32999a 3f363334 3f39cccd
    3f3d6666 3f410000 3f44999a 3f483333 3f4bcccd 3f4f6666 3f530000 3f56999a 3f5a3333 3f5dcccd 3f616666 3f650000
    3f68999a 3f6c3333 3f6fcccd 3f736666 3f770000 3f7a999a 3f7e3333
    """
)

DYNAMIC = (*(-value for value in reversed(_DYNAMIC)), 0.0, *_DYNAMIC, 1.0)
"""Values of codes 0 to 255 of scales that are quantized themselves, ascending.

They are constants because programs disagree: without fused multiply-add, torch computes 42 of them one or two
units in the last place apart. Files carry their own table, and readers use that one.
"""

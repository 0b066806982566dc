"""What a summary says of plain numbers in other dtypes: where they came from decides the words."""

from __future__ import annotations

from cli.command import call


def test_casts_name_both_dtypes(capsys, tmp_path):
    half, quantized, decoded = (tmp_path / name for name in ("f16.gguf", "q5_1.gguf", "bf16"))
    result = call(capsys, "export", "demo", "-f", "gguf:f16", "-o", half)
    assert "30 tensors were cast from bf16 to f16\n" in result.out
    call(capsys, "export", "demo", "-f", "gguf:q5_1", "--pure", "-o", quantized)
    result = call(capsys, "export", quantized, "-f", "dense:bf16", "-o", decoded)
    assert "30 tensors were decoded from q5_1 and rounded to bf16\n" in result.out
    assert "9 tensors were cast from f32 to bf16\n" in result.out
    assert "wider" not in result.out
    assert "no weight was quantized" in result.out

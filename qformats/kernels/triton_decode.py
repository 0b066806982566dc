"""The one decode: packed words of the device layout to levels, in any of its modes.

Every kernel calls :func:`level_of`. It has two branches that give the same bits. The portable one is plain
integer arithmetic, which also Triton's interpreter runs. The fast one handles two neighbouring columns with each
instruction: a code that is OR-ed into the mantissa of 1024 (float16) or 128 (bfloat16) is a float without any
conversion, and a table of 16 is looked up by permuting bytes, four codes at once.
"""

# ruff: noqa: ANN001, ANN201, ANN202 (arguments of a kernel are pointers and numbers of the device)

from __future__ import annotations

import triton
import triton.language as tl

from qformats.kernels.form import EXPONENT, FLOAT, LIFTED, MINIMUM, PLANES, QUOTIENT, TABLE, WHOLE

__all__ = [
    "divisor",
    "factor_of",
    "factor_words",
    "first_words",
    "float_factor",
    "float_unit",
    "has_floats",
    "has_minimum",
    "has_table",
    "is_quotient",
    "is_whole",
    "level_of",
    "load_lookup",
    "move_down",
    "of_quad",
    "of_strip",
    "quads_of_first",
    "quads_of_second",
    "quads_of_step",
    "scale_of",
    "second_words",
    "start_early",
    "table_levels",
]


@triton.constexpr_function
def has_minimum(mode):
    """Whether a minimum is added to the product of scale and level."""
    return mode == MINIMUM


@triton.constexpr_function
def has_floats(mode):
    """Whether codes are floats."""
    return mode == FLOAT


@triton.constexpr_function
def has_table(mode):
    """Whether levels are looked up."""
    return mode == TABLE


@triton.constexpr_function
def is_whole(inner):
    """Whether factors are whole numbers."""
    return inner == WHOLE


@triton.constexpr_function
def is_exponent(inner):
    """Whether factors are powers of two."""
    return inner == EXPONENT


@triton.constexpr_function
def is_quotient(inner):
    """Whether outer scales divide the factors."""
    return inner == QUOTIENT


@triton.constexpr_function
def lifted(number):
    """The float that becomes zero."""
    return float(number + LIFTED)


@triton.constexpr_function
def low_width(bits):
    """Width of the plane that holds the low bits."""
    return PLANES[bits][0]


@triton.constexpr_function
def high_width(bits):
    """Width of the plane that holds the high bits; 0 without one."""
    return sum(PLANES[bits][1:])


@triton.constexpr_function
def whole_half(number, bf16):
    """Bits of a positive whole number in float16 or bfloat16, which must hold it exactly."""
    mantissa, bias = (7, 127) if bf16 else (10, 15)
    exponent = number.bit_length() - 1
    return ((exponent + bias) << mantissa) + (number << mantissa >> exponent) - (1 << mantissa)


@triton.constexpr_function
def raised_by(bits, strip, within, bf16):
    """Bits that a code is left above the lowest of the mantissa, which saves a shift: as far as float16 has room."""
    low = low_width(bits)
    return 0 if bf16 or bits == 8 else low * ((4 * within + strip) % (16 // low)) % 8


@triton.constexpr_function
def one_below(bits, strip, within, bf16):
    """What a code is above, once it has been OR-ed into a mantissa and divided by what it was raised by."""
    return 128 if bf16 else 1024 >> raised_by(bits, strip, within, bf16)


@triton.constexpr_function
def pair_assembly(bits, strip, within, zero, bf16):
    """Two neighbouring codes of one strip to two levels: PTX for ``$0 = level($1, $2) - $3 or zero``."""
    low, high = low_width(bits), high_width(bits)
    raised = raised_by(bits, strip, within, bf16)
    magic = whole_half(128 if bf16 else 1024, bf16)
    one = one_below(bits, strip, within, bf16)
    both = 0x10001
    shift = low * ((4 * within + strip) % (16 // low)) - raised
    source = "$2" if bits == 8 and strip >= 2 else "$1"
    lines = ["{", ".reg .b32 t, h, z, s;"]
    if shift:
        lines.append(f"shr.u32 t, {source}, {shift};")
        source = "t"
    lines.append(f"lop3.b32 t, {source}, {(((1 << low) - 1) << raised) * both:#x}, {magic * both:#x}, 0xea;")
    if high:
        shift = high * ((4 * within + strip) % (16 // high)) - low - raised
        mask = (((1 << high) - 1) << low + raised) * both
        moved = "$2"
        if shift > 0:
            lines.append(f"shr.u32 h, $2, {shift};")
            moved = "h"
        elif shift < 0:
            lines.append(f"shl.b32 h, $2, {-shift};")
            moved = "h"
        lines.append(f"lop3.b32 t, {moved}, {mask:#x}, t, 0xea;")
    kind = "bf16x2" if bf16 else "f16x2"
    # A zero point is at most 64, or 256 in float16: neither sum needs more bits than there are.
    taken = "$3"
    if zero is not None:
        lines.append(f"mov.b32 z, {whole_half(one + zero, bf16) * both:#x};")
        taken = "z"
    if raised:
        # The quotient, which the product is, is exact, and so is the difference.
        lines.append(f"mov.b32 s, {(15 - raised << 10) * both:#x};")
        lines.append(f"neg.{kind} z, {taken};")
        lines.append("fma.rn.f16x2 $0, t, s, z;")
    else:
        lines.append(f"sub.{kind} $0, t, {taken};")
    lines.append("}")
    return "\n".join(lines)


@triton.constexpr_function
def float_unit(bits):
    """How much larger floats are than what :func:`float_assembly` makes of them in float16."""
    return 256.0 if bits == 8 else 32768.0


@triton.constexpr_function
def float_places(bits, strip):
    """Lowest bit of a float in its word, and its sign: as :func:`~qformats.kernels.words.mix_floats` lays them."""
    if bits == 8:
        return (7, 15) if strip % 2 else (0, 14)
    start = 8 * (strip % 2)
    return (start + 1, start + 7) if strip < 2 else (start + 4, start)


@triton.constexpr_function
def float_assembly(bits, strip, bf16):
    """Two neighbouring floats of 8 or 4 bits to two of 16: PTX for ``$0``, by :func:`float_unit` smaller in float16.

    Exponent and mantissa, also of subnormal numbers, are put where the larger float has them; only the bias is another
    one.
    """
    source = "$2" if bits == 8 and strip >= 2 else "$1"
    low, sign = float_places(bits, strip)
    count, mantissa = (7, 3) if bits == 8 else (3, 1)
    to = (7 if bf16 else 10) - mantissa
    size = ((1 << count) - 1 << to) * 0x10001
    lines = ["{", ".reg .b32 t, s, p, z;"]

    def moved(name, by):
        if by:
            lines.append(f"{'shl.b32' if by > 0 else 'shr.u32'} {name}, {source}, {abs(by)};")
        return name if by else source

    if to - low == 15 - sign:
        lines.append(f"and.b32 t, {moved('t', to - low)}, {size | 0x80008000:#x};")
    else:
        lines.append(f"and.b32 s, {moved('s', 15 - sign)}, 0x80008000;")
        lines.append(f"lop3.b32 t, {moved('t', to - low)}, {size:#x}, s, 0xea;")
    if bf16:
        # The bias is made up for here: products of numbers so small would not be exact in float32.
        lines.append(f"mov.b32 p, {(127 + (120 if bits == 8 else 127) << 7) * 0x10001:#x};")
        lines.append("mov.b32 z, 0x80008000;")
        lines.append("fma.rn.bf16x2 $0, t, p, z;")
    else:
        lines.append("mov.b32 $0, t;")
    lines.append("}")
    return "\n".join(lines)


@triton.constexpr_function
def factor_assembly(byte):
    """Outer scale times a factor: PTX for ``$0 = $2 * (byte of $1 - LIFTED)``, ``$3 = - $2 * (32768 + LIFTED)``.

    The byte becomes 32768 and itself in the mantissa of a float32; an outer scale of 11 bits times that is exact before
    ``$3`` is added, and ``$3`` has 20 bits.
    """
    return (
        f"{{ .reg .b32 t; prmt.b32 t, $1, 0x47000000, {0x7404 | byte << 4:#x}; fma.rn.f32 $0, t, $2, $3; }}"
    )


@triton.constexpr_function
def masked_assembly(half):
    """Four codes of two neighbouring words to levels: PTX for ``($0, $1) = pairs of strips 2 half, 2 half + 1``.

    ``$2`` holds the words; ``$3, $5, $7, $9`` the low bytes of 16 levels, ``$11`` to ``$17`` their high bytes. A byte
    permute looks up the bytes of four codes among the lower eight levels, another one among the upper eight; the
    highest bits of the codes, one place down where a permute takes them for an index, make the mask that chooses.
    """
    return f"""{{
.reg .b32 c, s, m, a, b, lo, hi;
and.b32 c, $2, 0x77777777;
shr.u32 s, $2, {16 * half + 1};
{"shr.u32 c, c, 16;" if half else ""}
prmt.b32 m, 0, 0xffffffff, s;
prmt.b32 a, $3, $5, c;
prmt.b32 b, $7, $9, c;
lop3.b32 lo, b, a, m, 0xe4;
prmt.b32 a, $11, $13, c;
prmt.b32 b, $15, $17, c;
lop3.b32 hi, b, a, m, 0xe4;
prmt.b32 $0, lo, hi, 0x5140;
prmt.b32 $1, lo, hi, 0x7362;
}}"""


@triton.constexpr_function
def paired_assembly(half):
    """As :func:`masked_assembly`, for tables whose level ``j`` and ``j + 8`` agree in the top bit of either byte.

    A permute that finds the top bit of its index set repeats the top bit of the byte instead of giving the byte. The
    tables are made so that what the permute of the other eight levels gives is undone by an exclusive or, and nothing
    need be masked. ``$19`` holds 65536: a product moves the upper half down in a unit that is idle otherwise.
    """
    down = """
mul.wide.u32 d, $2, $19;
mov.b64 {a, c}, d;
mul.wide.u32 d, x, $19;
mov.b64 {b, x}, d;"""
    return f"""{{
.reg .b32 c, x, a, b, lo, hi;
.reg .b64 d;
mov.b32 c, $2;
xor.b32 x, $2, 0x88888888;
{down if half else ""}
prmt.b32 a, $3, $5, c;
prmt.b32 b, $7, $9, x;
xor.b32 lo, a, b;
prmt.b32 a, $11, $13, c;
prmt.b32 b, $15, $17, x;
xor.b32 hi, a, b;
prmt.b32 $0, lo, hi, 0x5140;
prmt.b32 $1, lo, hi, 0x7362;
}}"""


@triton.constexpr_function
def joining_assembly(place):
    """Lower and upper halves of two float32, from words for strip `place` of two: PTX for ``($0, $1)``."""
    low, high = 2 + place, 4 + place
    return f"prmt.b32 $0, ${low}, ${high}, 0x5410; prmt.b32 $1, ${low}, ${high}, 0x7632;"


@triton.constexpr_function
def quads_of_first(bits):
    """Quads whose low bits one packed strip holds."""
    return max(1, 4 // PLANES[bits][0])


@triton.constexpr_function
def quads_of_second(bits):
    """Quads whose high bits one packed strip holds; without a second plane, as for the first."""
    return max(1, 4 // PLANES[bits][-1])


@triton.constexpr_function
def quads_of_step(bits):
    """Quads whose codes fill whole packed strips of every plane."""
    return max(1, 4 // min(PLANES[bits]))


@triton.jit
def start_early():
    """Let the next kernel of the stream be placed while this one runs, and wait for the one before this.

    Nothing is read or written before the wait: what overlaps is the launch alone.
    """
    tl.extra.cuda.gdc_launch_dependents()
    tl.extra.cuda.gdc_wait()


@triton.jit
def read(ptrs, inside, EVEN: tl.constexpr):
    """Load a tile, zeros where `inside` is false; `EVEN` says that it is true everywhere."""
    if EVEN:
        return tl.load(ptrs)
    else:
        return tl.load(ptrs, mask=inside, other=0)


@triton.jit
def first_words(low_ptr, quad, at, inside, strip_stride, BITS: tl.constexpr, EVEN: tl.constexpr):
    """Words that hold the low bits of a quad (8 bits: of its first two strips).

    `at` are offsets of rows and words within a packed strip; `inside` masks the rows.
    """
    width: tl.constexpr = low_width(BITS)
    strip = quad * width // 4
    return read(low_ptr + strip.to(tl.int64) * strip_stride + at, inside, EVEN)


@triton.jit
def second_words(
    first, low_ptr, high_ptr, quad, at, inside, strip_stride, BITS: tl.constexpr, EVEN: tl.constexpr
):
    """Words that hold the high bits of a quad; 8 bits: its last two strips; `first` where that brought all."""
    width: tl.constexpr = high_width(BITS)
    if BITS == 8:
        strip = quad * 2 + 1
        return read(low_ptr + strip.to(tl.int64) * strip_stride + at, inside, EVEN)
    elif width == 0:
        return first
    else:
        strip = quad * width // 4
        return read(high_ptr + strip.to(tl.int64) * strip_stride + at, inside, EVEN)


@triton.jit
def move_down(first, second, quad, BITS: tl.constexpr):
    """Words shifted so that any quad lies where the first of its packed strip would."""
    low: tl.constexpr = low_width(BITS)
    high: tl.constexpr = high_width(BITS)
    up = first
    if BITS == 8:
        up = second
    if low < 4:
        first = (first.to(tl.uint16, bitcast=True) >> (low * 4 * (quad % (4 // low))).to(tl.uint16)).to(
            tl.int16, bitcast=True
        )
    if high > 0:
        up = (second.to(tl.uint16, bitcast=True) >> (high * 4 * (quad % (4 // high))).to(tl.uint16)).to(
            tl.int16, bitcast=True
        )
    return first, up


@triton.jit
def of_strip(
    ptr,
    row,
    N,
    quad,
    STRIP: tl.constexpr,
    inside,
    GROUP: tl.constexpr,
    groups,
    EVEN: tl.constexpr,
    EVEN_K: tl.constexpr,
):
    """Parameters ``(groups, N)`` of one strip: ``[rows, 1]``, or ``[rows, 32]`` where it has several groups."""
    column = quad * 128 + STRIP * 32
    if GROUP == 0:
        return read(ptr + row[:, None], inside, EVEN)
    elif GROUP % 32 == 0:
        group = column // GROUP
        if not EVEN_K:
            group = tl.minimum(group, groups - 1)
        return read(ptr + group.to(tl.int64) * N + row[:, None], inside, EVEN)
    else:
        group = tl.minimum((column + tl.arange(0, 32)) // GROUP, groups - 1).to(tl.int64)
        return read(ptr + group[None, :] * N + row[:, None], inside, EVEN)


@triton.jit
def of_quad(ptr, row, N, quad, inside, OUTER: tl.constexpr, outers, EVEN: tl.constexpr, EVEN_K: tl.constexpr):
    """Outer scales or minima ``(outers, N)`` of one quad, which has one: float32 ``[rows, 1]``."""
    place = quad * 128 // OUTER
    if not EVEN_K:
        place = tl.minimum(place, outers - 1)
    return read(ptr + place.to(tl.int64) * N + row[:, None], inside, EVEN).to(tl.float32)


@triton.jit
def factor_words(ptr, row, N, quad, inside, GROUP: tl.constexpr, EVEN: tl.constexpr):
    """Words ``[rows, 1]`` with the factors of a quad, two; the same one twice where groups have 32 columns."""
    if GROUP == 32:
        word = read(ptr + quad.to(tl.int64) * N + row[:, None], inside, EVEN)
        return word, word
    else:
        at = ptr + (2 * quad).to(tl.int64) * N + row[:, None]
        return read(at, inside, EVEN), read(at + N, inside, EVEN)


@triton.constexpr_function
def word_of(strip, group, half):
    """Which of two words holds the factor of one strip, or of half a strip."""
    return 0 if group == 32 else strip // 2


@triton.constexpr_function
def byte_of(strip, group, half):
    """Which byte of its word a factor is."""
    return strip if group == 32 else 2 * (strip % 2) + half


@triton.jit
def factor_of(words, STRIP: tl.constexpr, HALF: tl.constexpr, GROUP: tl.constexpr, DTYPE: tl.constexpr):
    """Factors of one strip, or of half a strip where groups have 16 columns: `DTYPE`, exact, ``[rows, 1]``."""
    # Put into the mantissa of a large number, without a conversion.
    byte = (words[word_of(STRIP, GROUP, HALF)] >> (8 * byte_of(STRIP, GROUP, HALF))) & 255
    if DTYPE == tl.float16:
        near: tl.constexpr = lifted(1 << 10)
        return (byte | 0x6400).to(tl.int16).to(tl.float16, bitcast=True) - near
    else:
        far: tl.constexpr = lifted(1 << 23)
        return ((byte | 0x4B000000).to(tl.float32, bitcast=True) - far).to(DTYPE)


@triton.jit
def divisor(outer):
    """Outer scales that divide, and 1 in place of the zeros of rows that are not there."""
    return tl.where(outer == 0, 1.0, outer)


@triton.constexpr_function
def halved_assembly(place):
    """Upper or lower float16 of a word as float32: PTX for ``$0``."""
    return f"{{ .reg .b16 l, h; mov.b32 {{l, h}}, $1; cvt.f32.f16 $0, {'h' if place else 'l'}; }}"


@triton.jit
def float_factor(
    words,
    STRIP: tl.constexpr,
    HALF: tl.constexpr,
    GROUP: tl.constexpr,
    INNER: tl.constexpr,
    FAST: tl.constexpr,
):
    """Factors of one strip, or of half a strip, that are floats: float32 ``[rows, 1]``, E4M3 256 times smaller."""
    word = words[word_of(STRIP, GROUP, HALF)]
    byte: tl.constexpr = byte_of(STRIP, GROUP, HALF)
    if is_exponent(INNER):
        if byte < 3:
            bits = word << (23 - 8 * byte)
        else:
            bits = word >> 1
        return (bits & 0x7F800000).to(tl.float32, bitcast=True)
    else:
        # Two at once, where float16 has exponent and mantissa.
        if byte % 2 == 0:
            pair = (word << 7) & 0x3F803F80
        else:
            pair = (word >> 1) & 0x3F803F80
        if FAST:
            assembly: tl.constexpr = halved_assembly(byte // 2)
            return tl.inline_asm_elementwise(assembly, "=r,r", (pair,), tl.float32, True, 1)
        else:
            return (pair >> (16 * (byte // 2))).to(tl.int16).to(tl.float16, bitcast=True).to(tl.float32)


@triton.jit
def scale_of(
    outer,
    words,
    STRIP: tl.constexpr,
    HALF: tl.constexpr,
    GROUP: tl.constexpr,
    INNER: tl.constexpr,
    FAST: tl.constexpr,
):
    """Outer scales times factors, as float32 rounds them: ``[rows, 1]``."""
    if not is_whole(INNER):
        return float_factor(words, STRIP, HALF, GROUP, INNER, FAST) * outer
    elif FAST:
        far: tl.constexpr = -lifted(1 << 15)
        assembly: tl.constexpr = factor_assembly(byte_of(STRIP, GROUP, HALF))
        arguments = (words[word_of(STRIP, GROUP, HALF)], outer, outer * far)
        return tl.inline_asm_elementwise(assembly, "=r,r,r,r", arguments, tl.float32, True, 1)
    else:
        return outer * factor_of(words, STRIP, HALF, GROUP, tl.float32)


@triton.jit
def _code(first, second, BITS: tl.constexpr, STRIP: tl.constexpr, WITHIN: tl.constexpr):
    """Codes of one strip as int32, by plain arithmetic."""
    low: tl.constexpr = low_width(BITS)
    high: tl.constexpr = high_width(BITS)
    place: tl.constexpr = (4 * WITHIN + STRIP) % (16 // low)
    if BITS == 8 and STRIP >= 2:
        words = second
    else:
        words = first
    code = (words.to(tl.int32) >> (low * place)) & ((1 << low) - 1)
    if high > 0:
        above: tl.constexpr = (4 * WITHIN + STRIP) % (16 // high)
        code |= ((second.to(tl.int32) >> (high * above)) & ((1 << high) - 1)) << low
    return code


@triton.jit
def _table_code(words, STRIP: tl.constexpr):
    """Codes of one strip where nibbles of two neighbouring words are exchanged for byte permutes."""
    rows: tl.constexpr = words.shape[0]
    width: tl.constexpr = words.shape[1]
    pairs = tl.reshape(words.to(tl.int32), (rows, width // 2, 2))
    even, odd = tl.split(pairs)
    if STRIP < 2:
        chosen = even
    else:
        chosen = odd
    low = (chosen >> (8 * (STRIP % 2))) & 15
    high = (chosen >> (8 * (STRIP % 2) + 4)) & 15
    return tl.reshape(tl.join(low, high), (rows, width))


@triton.jit
def _pairs(ASSEMBLY: tl.constexpr, CONSTRAINTS: tl.constexpr, arguments, BF16: tl.constexpr):
    # The type of a result must be spelled out: a constant that holds a type is not taken for one.
    if BF16:
        return tl.inline_asm_elementwise(ASSEMBLY, CONSTRAINTS, arguments, tl.bfloat16, True, 2)
    else:
        return tl.inline_asm_elementwise(ASSEMBLY, CONSTRAINTS, arguments, tl.float16, True, 2)


@triton.jit
def level_of(
    first,
    second,
    zero,
    BITS: tl.constexpr,
    ZERO: tl.constexpr,
    STRIP: tl.constexpr,
    WITHIN: tl.constexpr,
    DTYPE: tl.constexpr,
    FAST: tl.constexpr,
    FLOATS: tl.constexpr,
):
    """Levels of one strip: ``code - zero``, or codes that are floats, by :func:`float_unit` smaller in fast float16.

    The fast branch is for float16, and for bfloat16 up to 6 bits, or floats.

    Parameters
    ----------
    first, second
        int16 ``[rows, 32]``, see :func:`first_words` and :func:`second_words`.
    zero
        Where `ZERO` is None: zero points ``[rows, 1]`` or ``[rows, 32]``.

    Returns
    -------
    `DTYPE` ``[rows, 32]``.
    """
    if FLOATS and FAST:
        floats: tl.constexpr = float_assembly(BITS, STRIP, DTYPE == tl.bfloat16)
        return _pairs(floats, "=r,r,r", [first, second], DTYPE == tl.bfloat16)
    elif FLOATS:
        if BITS == 8 and STRIP >= 2:
            words = second.to(tl.int32)
        else:
            words = first.to(tl.int32)
        # Exponent and mantissa in their places, also those of subnormal numbers; only the bias is another one.
        place: tl.constexpr = float_places(BITS, STRIP)
        low: tl.constexpr = place[0]
        sign: tl.constexpr = 1 << place[1]
        if BITS == 8:
            magnitude = (((words >> low) & 127) << 20).to(tl.float32, bitcast=True) * 1.329227995784916e36
        else:
            magnitude = (((words >> low) & 7) << 22).to(tl.float32, bitcast=True) * 1.7014118346046923e38
        return tl.where((words & sign) != 0, -magnitude, magnitude).to(DTYPE)
    elif FAST:
        assembly: tl.constexpr = pair_assembly(BITS, STRIP, WITHIN, ZERO, DTYPE == tl.bfloat16)
        if ZERO is None:
            below: tl.constexpr = one_below(BITS, STRIP, WITHIN, DTYPE == tl.bfloat16)
            raised = (zero.to(tl.float32) + below).to(DTYPE)
            raised = tl.broadcast_to(raised, first.shape)
            return _pairs(assembly, "=r,r,r,r", [first, second, raised], DTYPE == tl.bfloat16)
        else:
            return _pairs(assembly, "=r,r,r", [first, second], DTYPE == tl.bfloat16)
    else:
        code = _code(first, second, BITS, STRIP, WITHIN)
        if ZERO is None:
            return (code.to(tl.float32) - zero.to(tl.float32)).to(DTYPE)
        else:
            return (code - ZERO).to(tl.float32).to(DTYPE)


@triton.jit
def _held(ptr, place, zero):
    # A product of the thread's number and a zero that the assembler cannot know: without it the word, which is the same
    # in all threads, would be kept in a uniform register and be moved out of it for every permute.
    word = tl.load(ptr + place)
    assembly: tl.constexpr = "{ .reg .b32 t; mov.u32 t, %tid.x; mad.lo.u32 $0, t, $2, $1; }"
    return tl.inline_asm_elementwise(assembly, "=r,r,r", (word, zero), tl.int32, True, 1)


@triton.jit
def load_lookup(lookup_ptr, FIRST: tl.constexpr):
    """Eight words from `FIRST` on for :func:`_table_pairs`, and 65536, each ``[1, 1]``."""
    # A tile of one, not a scalar: the compiler keeps it with the words in the registers of the tensor cores.
    one = tl.zeros((1, 1), dtype=tl.int32)
    zero = tl.load(lookup_ptr + one + 35)
    return (
        _held(lookup_ptr, one + FIRST, zero),
        _held(lookup_ptr, one + (FIRST + 1), zero),
        _held(lookup_ptr, one + (FIRST + 2), zero),
        _held(lookup_ptr, one + (FIRST + 3), zero),
        _held(lookup_ptr, one + (FIRST + 4), zero),
        _held(lookup_ptr, one + (FIRST + 5), zero),
        _held(lookup_ptr, one + (FIRST + 6), zero),
        _held(lookup_ptr, one + (FIRST + 7), zero),
        _held(lookup_ptr, one, zero),
    )


@triton.jit
def _table_pairs(words, lookup, HALF: tl.constexpr, PAIRED: tl.constexpr):
    """16 bits of the levels of two strips: int32 ``[rows, 32]``, two neighbours hold a pair of each strip.

    Neighbours must lie in neighbouring registers of one thread from here to where pairs are taken apart, as they do
    in tiles loaded by words of 16 bits, and in operands of 16 bits of the tensor cores.

    An operation with several results would keep the compiler from decoding in the registers of the tensor cores.
    """
    t0, t1, t2, t3, t4, t5, t6, t7, upper = lookup
    if PAIRED:
        fast: tl.constexpr = paired_assembly(HALF)
        arguments = (words, t0, t1, t2, t3, t4, t5, t6, t7, upper)
        places: tl.constexpr = "=r,=r,r,r,r,r,r,r,r,r,r,r,r,r,r,r,r,r,r,r,r"
        return tl.inline_asm_elementwise(fast, places, arguments, tl.int32, True, 2)
    else:
        assembly: tl.constexpr = masked_assembly(HALF)
        tables = (words, t0, t1, t2, t3, t4, t5, t6, t7)
        spots: tl.constexpr = "=r,=r,r,r,r,r,r,r,r,r,r,r,r,r,r,r,r,r,r"
        return tl.inline_asm_elementwise(assembly, spots, tables, tl.int32, True, 2)


@triton.jit
def _joined(low, high, PLACE: tl.constexpr):
    """float32 levels of a strip from the lower and the upper 16 bits of their pairs."""
    assembly: tl.constexpr = joining_assembly(PLACE)
    return tl.inline_asm_elementwise(assembly, "=r,=r,r,r,r,r", (low, high), tl.float32, True, 2)


@triton.jit
def table_levels(
    words, table_ptr, lookup, upper, DTYPE: tl.constexpr, FAST: tl.constexpr, PAIRED: tl.constexpr
):
    """Levels of a quad of table codes, four strips ``[rows, 32]`` of `DTYPE`.

    Parameters
    ----------
    words
        int16 ``[rows, 32]``.
    table_ptr
        float32, 16 levels, which are exact in `DTYPE`.
    lookup, upper
        For the fast branch: the same levels by bytes, see :func:`load_lookup`; for float32 the lower and the upper
        halves of their bits.
    PAIRED
        Whether they are made for :func:`paired_assembly`.
    """
    if not FAST:
        return (
            tl.load(table_ptr + _table_code(words, 0)).to(DTYPE),
            tl.load(table_ptr + _table_code(words, 1)).to(DTYPE),
            tl.load(table_ptr + _table_code(words, 2)).to(DTYPE),
            tl.load(table_ptr + _table_code(words, 3)).to(DTYPE),
        )
    elif DTYPE == tl.float32:
        front = _table_pairs(words, lookup, 0, PAIRED)
        back = _table_pairs(words, lookup, 1, PAIRED)
        front_high = _table_pairs(words, upper, 0, PAIRED)
        back_high = _table_pairs(words, upper, 1, PAIRED)
        return (
            _joined(front, front_high, 0),
            _joined(front, front_high, 1),
            _joined(back, back_high, 0),
            _joined(back, back_high, 1),
        )
    else:
        front = _table_pairs(words, lookup, 0, PAIRED)
        back = _table_pairs(words, lookup, 1, PAIRED)
        bf16: tl.constexpr = DTYPE == tl.bfloat16
        return (
            _pairs("mov.b32 $0, $1;", "=r,r,r", (front,), bf16),
            _pairs("mov.b32 $0, $2;", "=r,r,r", (front,), bf16),
            _pairs("mov.b32 $0, $1;", "=r,r,r", (back,), bf16),
            _pairs("mov.b32 $0, $2;", "=r,r,r", (back,), bf16),
        )

"""The text that the tiny tokenizers are trained on and that the tests tokenize."""

from __future__ import annotations

__all__ = ["CHATML", "CORPUS", "PROMPTS"]

CORPUS = """\
A lighthouse keeper counts the ships that pass by night and writes the numbers into a book. In the first
week of the year he counted 12 ships, in the second week 34, in the third 567, and by the end of 1987
there had been 10482 of them. He didn't count the fishing boats, because they're small and they'd pass
twice a day.

"I've seen the same ship three times," he told the harbour master, "and it's never the same captain."
The harbour master wasn't surprised. "You'll see it again," she said. "We're waiting for spare parts,
and they won't come before March." The keeper's lamp turned once in 7.5 seconds; the book says 7.25, but
nobody believes the book.

The weights of a model are numbers too. A matrix of 64 rows and 192 columns holds 12288 of them, and
every number takes 4 bytes in memory: 49152 bytes in all. If we keep only 4 bits of each number, and one
scale for 32 numbers, then the matrix takes 6912 bytes. What is lost is small, what is saved is large,
and the rest is arithmetic.

def rotate(rows, heads):
    half = len(rows) // (2 * heads)
    for head in range(heads):
        for j in range(half):
            yield rows[2 * head * half + j]
            yield rows[2 * head * half + half + j]
    # the order matters: even rows first, then odd rows

for (int i = 0; i < n; ++i) { sum += a[i] * b[i]; }   /* left to right */
if (sum != 0.0f && !isnan(sum)) { return scale * (float)(code - 8); }

The letters of other languages: crème brûlée, naïve café, Größe und Übermut, señor, ångström, Москва и
Нева, Αθήνα, 数字和重量, 東京の灯台, 서울, שלום, مرحبا, ✓ → ∑ € and a ship: 🚢⚓.

When the lamp is on, the keeper reads. When the lamp is off, the keeper sleeps. When the keeper sleeps,
the ships pass uncounted, and the book is wrong. The book was wrong in 1988, in 1990, in 1991 and in
2003; it will be wrong again. The harbour master knows it, the captains know it, and the keeper knows it
too. They'll say: "It's only a book." But a book of numbers is all that is left of the ships, and that's
why the numbers have to be right.
"""

PROMPTS = (
    "The keeper counts the ships of 1987 and writes 10482 into the book.",
    "Hello world",
    " leading space, then  two spaces,   three and a tab\tend",
    "I've said he'LL come; they're here, isn't it? WE'RE 'quoted' don't",
    "12 345 6789 3.14159 1e-5 0x7f 2024-11-22",
    "def f(x):\n    return x ** 2\n\n\n# done\r\n\r\n  end",
    "crème brûlée, Größe, Москва, 数字和重量, 東京, 서울, שלום ✓🚢⚓👩‍🚀",
    '...!!!??? --- === ((())) {"a": [1, 2]} </s> <unk>',
    "qformats and unseen wordsqformats",
    "trailing newline\n",
    "",
)
"""Texts in which every splitter does something different from the others."""

CHATML = (
    "{% for message in messages %}"
    "{{ '<|im_start|>' + message['role'] + '\n' + message['content'] + '<|im_end|>\n' }}"
    "{% endfor %}{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
)

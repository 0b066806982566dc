"""The page as text: what it says, what it escapes, and what it does with reports that lack something."""

from __future__ import annotations

import base64
import dataclasses
import hashlib
import html.parser
import itertools
import math
import os
import re
import stat
import subprocess
import sys

import pytest
from compare.page_example import FORMATS, HOSTILE, example, model, windows, without

from qformats.comparing.page import page, write_page
from qformats.comparing.page.axes import Scale, spread
from qformats.comparing.page.heatmap import cells
from qformats.comparing.page.labels import Box, Spot, place, shorten, width
from qformats.comparing.page.markup import Html, clean, el
from qformats.comparing.page.numbers import TIMES, decimal, estimate, percent, share, size, tick
from qformats.comparing.page.scatter import frontier
from qformats.comparing.page.verdict import judge
from qformats.comparing.report import CompareReport, Estimate
from qformats.errors import OutputError

VOID = {"meta", "link", "br", "input"}


class Reader(html.parser.HTMLParser):
    """An independent reading of the page: its elements, and whether each is closed where it should be."""

    def __init__(self, source: str) -> None:
        super().__init__(convert_charrefs=True)
        self.elements: list[tuple[str, dict[str, str | None]]] = []
        self.open: list[str] = []
        self.words: list[str] = []
        self.feed(source)
        self.close()
        assert self.open == []

    def handle_starttag(self, tag, attrs):
        names = [name for name, _ in attrs]
        assert len(names) == len(set(names)), (tag, names)
        self.elements.append((tag, dict(attrs)))
        if tag not in VOID:
            self.open.append(tag)

    def handle_endtag(self, tag):
        assert self.open.pop() == tag

    def handle_data(self, data):
        if self.open and self.open[-1] not in ("script", "style"):
            self.words.append(data)

    @property
    def text(self) -> str:
        return re.sub(r"\s+", " ", " ".join(self.words))


@pytest.fixture(scope="module")
def report():
    return example()


@pytest.fixture(scope="module")
def source(report):
    return page(report)


@pytest.fixture(scope="module")
def read(source):
    return Reader(source)


def scaled(report: CompareReport, name: str, **behaviour: object) -> CompareReport:
    """The report with a part of one model's behaviour against the base replaced."""
    models = []
    for each in report.models:
        if each.name == name:
            against = dataclasses.replace(each.behaviour.against, **behaviour)
            each = dataclasses.replace(each, behaviour=dataclasses.replace(each.behaviour, against=against))
        models.append(each)
    return dataclasses.replace(report, models=tuple(models))


def test_the_page_is_one_file_that_asks_for_nothing(read):
    for tag, attributes in read.elements:
        for name in ("src", "href", "srcset", "action", "data", "poster", "xlink:href"):
            place = attributes.get(name)
            assert place is None or place.startswith("#") or place == "data:,", (tag, name, place)
        assert not [name for name in attributes if name.startswith("on")], (tag, attributes)
        assert "style" not in attributes, (tag, attributes)
    assert [tag for tag, _ in read.elements if tag in ("img", "iframe", "object", "embed", "base")] == []


def test_the_policy_names_the_style_and_the_script_that_are_there(source, read):
    policy = next(a["content"] for _, a in read.elements if a.get("http-equiv") == "Content-Security-Policy")
    assert policy.startswith("default-src 'none'; ")
    assert "unsafe" not in policy
    for tag in ("style", "script"):
        found = re.findall(rf"<{tag}\b[^>]*>(.*?)</{tag}>", source, re.DOTALL)
        assert len(found) == 1
        digest = base64.b64encode(hashlib.sha256(found[0].encode()).digest()).decode()
        assert f"{tag}-src 'sha256-{digest}'" in policy


def test_anchors_lead_somewhere_and_ids_are_unique(read):
    ids = [a["id"] for _, a in read.elements if "id" in a]
    assert len(ids) == len(set(ids))
    targets = {a["href"].removeprefix("#") for tag, a in read.elements if tag == "a"}
    named = {name for _, a in read.elements for name in (a.get("aria-labelledby") or "").split()}
    assert targets | named <= set(ids)
    parts = {"verdict", "size", "behaviour", "tokens", "tasks", "weights", "identical", "speed", "method"}
    assert targets == parts


def test_pictures_have_words_in_their_place(read):
    drawn = [a for tag, a in read.elements if tag == "svg" and a.get("role") == "img"]
    assert len(drawn) >= 3 * 2 + 2 * len(FORMATS)
    hidden = [a for tag, a in read.elements if tag == "svg" and a.get("aria-hidden") == "true"]
    outer = [a for tag, a in read.elements if tag == "svg" and not a.get("preserveaspectratio")]
    assert len(drawn) + len(hidden) == len(outer)


def test_headings_skip_no_level(read):
    levels = [int(tag[1]) for tag, _ in read.elements if re.fullmatch(r"h[1-6]", tag)]
    assert levels[0] == 1
    assert levels.count(1) == 1
    assert all(after <= before + 1 for before, after in itertools.pairwise(levels))


def test_hostile_text_is_text_everywhere():
    read = Reader(page(example(("gguf:q4_0", "gptq:4bit-128g"), hostile=True)))
    tags = [tag for tag, _ in read.elements]
    assert tags.count("script") == 1
    assert "img" not in tags
    # In the title, the advice, the tables, the token, the notes, the text's name, the machine.
    assert read.text.count(clean(HOSTILE)) > 20


def test_characters_that_reorder_or_cut_text_are_shown():
    assert clean("a\u202eb\u2066c") == "a⟨U+202E⟩b⟨U+2066⟩c"
    assert clean("\x00\x1b[1m\x7f\n\t") == "␀␛[1m⟨U+007F⟩\n\t"
    assert clean("\ud83d half").encode() == "\ufffd half".encode()
    assert clean("Größe 語 👍") == "Größe 語 👍"


def test_markup_escapes_whatever_is_not_markup():
    made = el("p", "<b>", Html("<i>x</i>"), None, ["&", 3], class_='a"b', data_x="<", hidden=True, id=None)
    assert made == '<p class="a&quot;b" data-x="&lt;" hidden>&lt;b&gt;<i>x</i>&amp;3</p>'


def test_each_model_gets_its_line(report, read):
    for each in report.models:
        assert f"{each.name} " in read.text
    assert "Ship gptq:4bit-128g." in read.text
    assert (
        f"26 % of the base's size (3.8{TIMES} smaller), and the smallest model that stays close to the base."
        in read.text
    )
    assert "gguf:q8_0 is practically lossless, at 53 %." in read.text


def test_the_smallest_that_stays_close_is_advised(report):
    verdict = judge(report)
    assert [s.model.nbytes for s in verdict.standings] == sorted(m.nbytes for m in report.models)
    assert [s.model.name for s in verdict.standings if s.advised] == ["gptq:4bit-128g"]
    beaten = {s.model.name: s.beaten_by for s in verdict.standings if s.beaten_by}
    # Each is beaten by what is no larger and closer, by the closest of these.
    assert beaten == {"gguf:q4_0": "gguf:q4_k", "bitsandbytes:nf4": "gguf:q4_k"}


def test_where_nothing_stays_close_nothing_is_advised():
    verdict = judge(example(("gguf:q2_k", "glm:int4")))
    assert verdict.headline == "None of these stays close to demo."
    assert verdict.detail.startswith("glm:int4 comes closest, but is very different.")
    assert not any(s.advised for s in verdict.standings)


def test_weights_alone_advise_nothing(report):
    verdict = judge(without(report, "behaviour"))
    assert not any(s.advised or s.beaten_by or s.grade for s in verdict.standings)
    assert "--text" in verdict.detail
    assert "dB" in verdict.standings[0].cost


def test_a_model_with_the_base_numbers_is_said_to_have_them():
    exact = model("copy", "f16", 16.0, 1e-9, 0.0)
    against = exact.behaviour.against
    none = dataclasses.replace(against.kl, mean=Estimate(0.0, 0.0))
    against = dataclasses.replace(against, kl=none, windows=windows(0.0, 0.0, 0.0))
    behaviour = dataclasses.replace(exact.behaviour, against=against)
    report = dataclasses.replace(example(()), models=(dataclasses.replace(exact, behaviour=behaviour),))
    standing = judge(report).standings[0]
    assert standing.grade.word == "the same numbers"
    assert "Every compared weight has the base's value." in standing.cost
    read = Reader(page(report))
    # Rounding while computing does not unmake equal weights, but equal weights do not excuse other predictions.
    odd = dataclasses.replace(exact, behaviour=model("x", "f16", 16.0, 0.5, 0.1).behaviour)
    assert judge(dataclasses.replace(report, models=(exact,))).standings[0].grade.word == "the same numbers"
    assert judge(dataclasses.replace(report, models=(odd,))).standings[0].grade.word == "very different"
    assert "no weight differs from the base's" not in read.text  # there is no map to say it of
    assert "Left out, because no model changes them" in read.text


@pytest.mark.parametrize("broken", [math.inf, math.nan])
def test_a_model_that_broke_is_shown_as_broken(report, broken):
    """Infinite or undefined statistics leave the chart, not the page."""
    kl = report.models[0].behaviour.against.kl
    bad = dataclasses.replace(
        kl,
        mean=Estimate(broken, broken),
        percentiles=dataclasses.replace(kl.percentiles, median=broken, p99=broken, max=broken),
    )
    changed = scaled(report, "gguf:q2_k", kl=bad, perplexity_ratio=Estimate(broken, broken))
    read = Reader(page(changed))
    assert "nan" not in read.text.lower().replace("qformats", "")
    shown = [a for tag, a in read.elements if tag == "g" and "point" in (a.get("class") or "").split()]
    whole = [
        a
        for tag, a in Reader(page(report)).elements
        if tag == "g" and "point" in (a.get("class") or "").split()
    ]
    assert len(whole) - len(shown) == 2  # one model, once for each layout
    assert not judge(changed).standings[0].advised


@pytest.mark.parametrize(
    "gone",
    [("behaviour",), ("weights",), ("speed",), ("behaviour", "weights"), ("behaviour", "weights", "speed")],
)
def test_parts_without_numbers(report, gone):
    read = Reader(page(without(report, *gone)))
    assert ("The models were not run" in read.text) == ("behaviour" in gone)
    assert ("No weights were compared." in read.text) == ("weights" in gone)
    assert ("Speed and memory" in read.text) == ("speed" not in gone)


def test_tasks_are_results_changes_and_how_they_were_measured(report):
    read = Reader(page(report))
    for said in (
        "Published tests",
        "LAMBADA",
        "80.00 ± 0.56",
        "5,153 passages of lambada.jsonl",
        "left to right: causal.",
    ):
        assert said in read.text.replace("\u202f", " ").replace("\xa0", " "), said
    assert "the beginning of ptb" in read.text
    assert "Published tests" not in Reader(page(without(report, "behaviour"))).text
    # Tasks alone: nothing is said of a text that nobody wanted.
    alone = dataclasses.replace(without(report, "behaviour"), tasks=report.tasks, base=report.base)
    assert "The models were not run" not in Reader(page(alone)).text


def test_a_base_alone_makes_a_page():
    read = Reader(page(example(())))
    assert "Nothing to compare demo with." in read.text


def test_a_report_read_back_from_json_makes_the_same_page(report, source):
    assert page(CompareReport.from_dict(report.to_dict())) == source


def test_a_mixture_of_experts_fits_a_map():
    """Experts of a layer share a cell; its error follows from sums over all their weights, exact ones included."""
    one, other, third, *rest = example(("gguf:q4_0",)).models[0].weights.by_tensor
    other = dataclasses.replace(
        other, kind=one.kind, error=dataclasses.replace(other.error, rmse=0.5, base_rms=2.0)
    )
    third = dataclasses.replace(third, kind=one.kind, error=dataclasses.replace(third.error, rmse=0.0))
    found = cells([one, other, third, *rest])[0]
    n, m, k = (t.error.count for t in (one, other, third))
    changed = n * one.error.rmse**2 + m * 0.25
    expected = math.sqrt(changed / (n * 0.04**2 + m * 4 + k * 0.04**2))
    assert found.tensors == (one, other, third)
    assert found.error == pytest.approx(expected)


def test_the_page_is_written_whole_and_readable(report, source, tmp_path):
    path = tmp_path / "report.html"
    path.write_text("before")
    write_page(report, path)
    assert path.read_text(encoding="utf-8") == source
    mask = os.umask(0)
    os.umask(mask)
    assert stat.S_IMODE(path.stat().st_mode) == 0o666 & ~mask
    assert list(tmp_path.iterdir()) == [path]


def test_a_place_that_cannot_hold_the_page_is_named(report, tmp_path):
    with pytest.raises(OutputError, match="is a folder"):
        write_page(report, tmp_path)
    with pytest.raises(OutputError, match="nowhere"):
        write_page(report, tmp_path / "nowhere" / "report.html")


def test_drawing_a_page_imports_no_torch():
    code = (
        "import sys; from qformats.comparing.page import page; from qformats.comparing.report import *; "
        "page(CompareReport(ModelResult('b', 'b', 'f', {}, 'c', False, '', 8, 4, 16.0), ())); "
        "print([m for m in ('torch', 'transformers') if m in sys.modules])"
    )
    run = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60, check=True)
    assert run.stdout.strip() == "[]"


def test_numbers_are_written_for_people():
    written = [
        (decimal(0.0123456), "0.0123"),
        (decimal(0.09996), "0.100"),
        (decimal(0.00000123), f"1.23 {TIMES} 10⁻⁶"),
        (decimal(-12.345), "\N{MINUS SIGN}12.3"),
        (decimal(1234567.0), "1,234,567"),
        (decimal(0), "0"),
        (decimal(math.inf), "∞"),
        (decimal(math.nan), "\N{EN DASH}"),
        (tick(0.01), "0.01"),
        (tick(1000), "1,000"),
        (tick(20), "20"),
        (estimate(Estimate(12.3456, 0.2149)), "12.35 ± 0.21"),
        (estimate(Estimate(-0.0001, 0.03), sign=True), "0.000 ± 0.030"),
        (estimate(Estimate(0.5, 0.01), 100, "%", sign=True), "+50.0 ± 1.0%"),
        (estimate(Estimate(3.0, math.inf)), "3.00"),
        (estimate(None), "\N{EN DASH}"),
        (percent(0.0449), "4.49\u202f%"),
        (share(1, 3), "33\u202f%"),
        (share(1, 10**6), "<0.1\u202f%"),
        (share(999, 1000), ">99\u202f%"),
        (share(3, 3), "100\u202f%"),
        (size(999), "999\xa0B"),
        (size(999_600), "1.00\xa0MB"),
        (size(12_345_678), "12.3\xa0MB"),
        (size(3.2e12), "3.20\xa0TB"),
        (size(3.2e16), "32000\xa0TB"),
    ]
    assert [found for found, _ in written] == [expected for _, expected in written]


@pytest.mark.parametrize(
    ("low", "high", "log"),
    [
        (0.0008, 1.2, True),
        (0.04, 0.05, True),
        (1e-9, 10, True),
        (12.3, 13.1, False),
        (-3, 900, False),
        (0, 1e-7, False),
    ],
)
def test_axes_mark_round_values_inside(low, high, log):
    scale = Scale(low, high, log)
    ticks = scale.ticks(6)
    assert 2 <= len(ticks) <= 8
    assert ticks == sorted(set(ticks))
    assert all(low <= value <= high * (1 + 1e-9) for value in ticks)
    places = [scale.place(value) for value in ticks]
    assert places == sorted(places)
    assert scale.place(low) == 0
    assert scale.place(high) == pytest.approx(1)
    assert max(len(f"{value:.6g}") for value in ticks) <= 8


@pytest.mark.parametrize("values", [[1.0], [0.0, 0.0], [-2.0, 5.0], [1e-8, 1e3]])
def test_axes_hold_their_values_with_room_to_spare(values):
    for log in (False, True) if min(values) > 0 else (False,):
        scale = spread(values, log)
        assert all(0 < scale.place(value) < 1 for value in values)


def test_the_frontier_is_what_nothing_beats():
    assert frontier([(4, 0.5), (2, 0.9), (4, 0.4), (8, 0.4), (3, 0.95), (9, 0.1)]) == [
        (2, 0.9),
        (4, 0.4),
        (9, 0.1),
    ]


def test_names_of_a_crowd_keep_apart():
    spots = [Spot(300 + 7 * n, 200 + 5 * (n % 3), 6, f"model-{n}:q4") for n in range(8)]
    frame = Box(0, 0, 900, 400)
    found = [label.box for label in place(spots, 12, frame)]
    assert all(box.outside(frame) == 0 for box in found)
    assert all(one.overlap(other) == 0 for i, one in enumerate(found) for other in found[:i])


def test_long_names_keep_both_ends():
    name = "SmolLM2-135M-Instruct-fine-tuned.Q4_1.gguf"
    short = shorten(name, 12, 150)
    assert width(short, 12) <= 150
    head, tail = short.split("…")
    assert name.startswith(head)
    assert name.endswith(tail)
    assert shorten("short", 12, 150) == "short"


def test_a_map_keeps_its_colours_for_what_most_tensors_are():
    """One output layer in eight bits does not leave the four-bit tensors without contrast."""
    mixed = example(("gguf:q4_0",)).models[0]
    odd = max(
        range(len(mixed.weights.by_tensor)), key=lambda n: mixed.weights.by_tensor[n].kind == "embed_tokens"
    )
    tensors = list(mixed.weights.by_tensor)
    fine = dataclasses.replace(tensors[odd].error, rmse=0.001 * tensors[odd].error.base_rms)
    tensors[odd] = dataclasses.replace(tensors[odd], format="gguf:q8_0", error=fine)
    weights = dataclasses.replace(mixed.weights, by_tensor=tuple(tensors))
    report = dataclasses.replace(example(()), models=(dataclasses.replace(mixed, weights=weights),))
    rects = [a for tag, a in Reader(page(report)).elements if tag == "rect" and "data-shared" in a]
    opacities = sorted(float(a["fill-opacity"]) for a in rects)
    assert len(opacities) == 7 * 12 + 1
    assert opacities[0] == opacities[1] == 0.08  # the odd one, and the best of the others
    assert opacities[-1] == 1
    # On the scale that maps share, the odd one does count.
    assert sorted(float(a["data-shared"]) for a in rects)[1] > 0.8


@pytest.mark.parametrize("name", ["=HYPERLINK(1)", "+1", "-1+1", "@SUM(1)", "\t=1"])
def test_cells_of_the_csv_are_never_formulas(report, name):
    import csv
    import dataclasses
    import io

    named = dataclasses.replace(report, base=dataclasses.replace(report.base, name=name, path="a\r\n=1"))
    rows = list(csv.DictReader(io.StringIO(named.to_csv(), newline="")))
    assert rows[0]["name"] == f"'{name}"
    assert rows[0]["path"] == "a\\r\n=1"
    # Numbers stay numbers.
    assert any(float(value) < 0 for value in rows[1].values() if value.startswith("-"))

"""The page as its readers have it: in a browser, in both themes, on a phone, by keyboard, without a network."""

from __future__ import annotations

import dataclasses
import itertools
import math
import re

import pytest
from cli.command import call
from compare.page_browser import CONTRAST, launched, opened
from compare.page_example import FORMATS, HOSTILE, KINDS, LAYERS, OUTSIDE, example, without
from playwright.sync_api import expect

from qformats.comparing.page import write_page
from qformats.comparing.page.markup import clean

SHOWN = ("gguf:q8_0", "gguf:q4_k", "gguf:q4_0", "gptq:4bit-128g", "bitsandbytes:nf4", "glm:int4")
QUANTIZED = [kind for kind, shape in KINDS.items() if len(shape) == 2]
LETTERS = """
names => names.map((name) => {
  const [box, scale] = [name.getBBox(), name.getScreenCTM()];
  return { text: name.textContent, x: scale.e + scale.a * box.x, y: scale.f + scale.d * box.y,
           width: scale.a * box.width, height: scale.d * box.height };
})
"""
"""Boxes of the letters alone: what the browser calls an element's box has its halo too."""
OPEN_ALL = "for (const fold of document.querySelectorAll('details')) fold.open = true"


@pytest.fixture(scope="module")
def browser():
    with launched() as found:
        yield found


@pytest.fixture(scope="module")
def report():
    return example(SHOWN)


@pytest.fixture(scope="module")
def file(report, tmp_path_factory):
    path = tmp_path_factory.mktemp("page") / "report.html"
    write_page(report, path)
    return path


def column(page, table: str, index: int) -> list[str]:
    """Texts of a column, from top to bottom."""
    return page.locator(f"#{table} tbody tr > :nth-child({index + 1})").all_inner_texts()


def boxes(locator) -> list[dict[str, float]]:
    """Where elements lie on the page."""
    return locator.evaluate_all(
        """elements => elements.map((element) => {
             const { x, y, width, height } = element.getBoundingClientRect();
             return { x: x + scrollX, y: y + scrollY, width, height };
           })"""
    )


def centre(box) -> tuple[float, float]:
    return box["x"] + box["width"] / 2, box["y"] + box["height"] / 2


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_nothing_is_fetched_and_nothing_complained_about(browser, file, scheme):
    with opened(browser, file, scheme) as seen:
        seen.page.locator("#theme").click()
        seen.page.evaluate(OPEN_ALL)
        seen.page.evaluate("for (const button of document.querySelectorAll('thead button')) button.click()")
        assert seen.requests == [file.as_uri()]
        assert seen.complaints == []


def test_a_page_that_breaks_its_policy_is_noticed(browser, file, tmp_path):
    """The test above can fail: a script of another's making is refused, and the refusal is seen."""
    broken = tmp_path / "broken.html"
    intruder = '<script>window.hacked = 1</script><img src="https://example.org/x.png"></body>'
    broken.write_text(file.read_text().replace("</body>", intruder))
    with opened(browser, broken) as seen:
        assert seen.page.evaluate("window.hacked") is None
        assert [c for c in seen.complaints if "Content Security Policy" in c]


@pytest.mark.parametrize(("width", "layout"), [(1280, "wide"), (360, "narrow")])
def test_the_chart_shows_each_model_where_its_numbers_are(browser, file, report, width, layout):
    with opened(browser, file, width=width) as seen:
        page = seen.page
        charts = page.locator("svg.scatter:visible")
        assert charts.count() == 1
        assert layout in charts.get_attribute("class")
        marks = [centre(box) for box in boxes(charts.locator(".point .mark"))]
        models = [report.base, *report.models]
        assert len(marks) == len(models)
        chart = charts.bounding_box()
        assert chart["width"] > 250
        assert all(chart["x"] < x < chart["x"] + chart["width"] for x, _ in marks)
        assert all(chart["y"] < y < chart["y"] + chart["height"] for _, y in marks)
        cost = [0.0, *(m.behaviour.against.kl.mean.value for m in report.models)]
        by_size = sorted(range(len(models)), key=lambda i: models[i].bits_per_weight)
        by_cost = sorted(range(len(models)), key=lambda i: -cost[i])
        assert sorted(range(len(marks)), key=lambda i: marks[i][0]) == by_size
        assert sorted(range(len(marks)), key=lambda i: marks[i][1]) == by_cost
        assert charts.locator("path.frontier").evaluate("path => path.getTotalLength()") > 50


@pytest.mark.parametrize("width", [1280, 360])
def test_no_name_in_a_chart_covers_another(browser, file, width):
    with opened(browser, file, width=width) as seen:
        for metric in ("kl", "perplexity", "weights"):
            seen.page.locator(f".picker input[value={metric}]").check(force=True)
            chart = seen.page.locator("svg.scatter:visible").bounding_box()
            names = seen.page.locator("svg.scatter:visible .name").evaluate_all(LETTERS)
            assert len(names) == len(SHOWN) + 1
            for one in names:
                assert one["x"] >= chart["x"] - 1
                assert one["x"] + one["width"] <= chart["x"] + chart["width"] + 1
            for one, other in itertools.combinations(names, 2):
                wide = min(one["x"] + one["width"], other["x"] + other["width"]) - max(one["x"], other["x"])
                high = min(one["y"] + one["height"], other["y"] + other["height"]) - max(one["y"], other["y"])
                assert wide <= 0 or high <= 0, (metric, one["text"], other["text"])


def test_the_picker_changes_the_chart_by_keyboard(browser, file):
    with opened(browser, file) as seen:
        page = seen.page
        assert page.locator(".chart-kl").is_visible()
        page.locator(".picker input[value=kl]").focus()
        page.keyboard.press("ArrowRight")
        assert page.locator(".chart-perplexity").is_visible()
        assert not page.locator(".chart-kl").is_visible()


def test_the_distribution_is_drawn_on_one_axis(browser, file, report):
    with opened(browser, file) as seen:
        rows = seen.page.locator(".ridge-row:has(.shape)")
        names = rows.locator("h3").all_inner_texts()
        means = {m.name: m.behaviour.against.kl.mean.value for m in report.models}
        assert names == sorted(means, key=means.__getitem__)
        shapes = boxes(rows.locator(".shape"))
        assert len(shapes) == len(SHOWN)
        assert all(shape["width"] > 300 and shape["height"] > 40 for shape in shapes)
        medians = [box["x"] for box in boxes(rows.locator(".at.median"))]
        found = {m.name: m.behaviour.against.kl.percentiles.median for m in report.models}
        # On an axis of logarithms, places are a straight line over the logarithms of values.
        logs = [math.log10(found[name]) for name in names]
        slope = (medians[-1] - medians[0]) / (logs[-1] - logs[0])
        assert slope > 10
        for x, log in zip(medians, logs, strict=True):
            assert x == pytest.approx(medians[0] + slope * (log - logs[0]), abs=1)


@pytest.mark.parametrize("width", [1280, 360])
def test_the_maps_have_a_cell_for_each_tensor(browser, file, report, width):
    with opened(browser, file, width=width) as seen:
        maps = seen.page.locator(".heat-figure")
        assert maps.locator("h3").all_inner_texts() == list(SHOWN)
        first = maps.first
        assert first.locator(".kinds li").all_inner_texts() == [*QUANTIZED, "embed_tokens"]
        cells = boxes(first.locator("rect.cell"))
        assert len(cells) == len(QUANTIZED) * LAYERS + 1
        assert all(cell["width"] > 3 and cell["height"] > 10 for cell in cells)
        left = min(cell["x"] for cell in cells)
        # What lies outside of all layers spans them.
        assert cells[-1]["width"] == pytest.approx(LAYERS * cells[0]["width"], rel=0.02)
        assert cells[-1]["x"] == pytest.approx(left, abs=1)
        page = seen.page
        page.locator("#shared-scale").uncheck()
        strongest = first.locator("rect.cell").evaluate_all(
            "cells => cells.find((c) => c.getAttribute('fill-opacity') === '1.00').querySelector('title').textContent"
        )
        worst = max(report.models[0].weights.by_tensor, key=lambda t: t.error.relative_rmse)
        assert strongest.startswith(f"layer {worst.layer}, {worst.kind}")


OPACITIES = "cells => cells.map(cell => +cell.getAttribute('fill-opacity'))"


def test_maps_share_a_scale_at_first_and_have_their_own_by_keyboard(browser, file, report):
    with opened(browser, file) as seen:
        page = seen.page
        switch, figures = page.locator("#shared-scale"), page.locator(".heat-figure").all()
        assert switch.is_checked()
        every = [m.sqnr_db for model in report.models for m in (t.error for t in model.weights.by_tensor)]
        finite = [db for db in every if math.isfinite(db)]
        told = f"One scale for all models ({min(finite):.1f} to {max(finite):.1f} dB)"
        assert page.locator("label:has(#shared-scale)").inner_text() == told
        shared = [figure.locator("rect.cell").evaluate_all(OPACITIES) for figure in figures]
        # Eight bits are pale beside four.
        assert max(shared[0]) < 0.25
        assert min(shared[-1]) > max(shared[0])
        # The same error has the same colour in every map, and a larger one is never paler.
        cells = [
            (error.sqnr_db, opacity)
            for model, opacities in zip(report.models, shared, strict=True)
            for error, opacity in zip(
                (t.error for t in model.weights.by_tensor if t.quantized), opacities, strict=True
            )
        ]
        assert [opacity for _, opacity in sorted(cells, reverse=True)] == sorted(o for _, o in cells)
        switch.focus()
        page.keyboard.press("Space")
        own = [figure.locator("rect.cell").evaluate_all(OPACITIES) for figure in figures]
        assert all(max(opacities) == 1 for opacities in own)
        page.keyboard.press("Space")
        again = [figure.locator("rect.cell").evaluate_all(OPACITIES) for figure in figures]
        assert again == shared


def test_one_map_has_its_own_scale(browser, tmp_path):
    path = tmp_path / "report.html"
    write_page(example(("gguf:q8_0",)), path)
    with opened(browser, path) as seen:
        assert not seen.page.locator("#shared-scale").is_checked()
        assert max(seen.page.locator(".heat-figure rect.cell").evaluate_all(OPACITIES)) == 1


def test_maps_are_read_by_keyboard_and_by_pointer(browser, file):
    with opened(browser, file) as seen:
        page = seen.page
        figure = page.locator(".heat-figure").first
        readout, cells = figure.locator(".readout"), figure.locator("svg.heat")
        assert readout.inner_text().startswith("Largest: layer ")
        cells.focus()
        assert readout.inner_text().startswith("layer 0, self_attn.q_proj: gguf:q8_0, 4")
        for key, expected in (
            ("ArrowRight", "layer 1, self_attn.q_proj"),
            ("ArrowDown", "layer 1, self_attn.k_proj"),
            ("ArrowLeft", "layer 0, self_attn.k_proj"),
            ("ArrowLeft", "layer 0, self_attn.k_proj"),
            ("ArrowUp", "layer 0, self_attn.q_proj"),
        ):
            page.keyboard.press(key)
            assert readout.inner_text().startswith(expected)
        for _ in QUANTIZED:
            page.keyboard.press("ArrowDown")
        assert readout.inner_text().startswith("embed_tokens")
        figure.locator("rect.cell").nth(3).hover()
        assert readout.inner_text().startswith("layer 0, self_attn.o_proj")
        cursor = figure.locator(".cursor").bounding_box()
        assert cursor["x"] == pytest.approx(figure.locator("rect.cell").nth(3).bounding_box()["x"], abs=2)


def test_tables_sort_by_value_in_both_directions(browser, file, report):
    with opened(browser, file) as seen:
        page = seen.page
        models = [report.base, *report.models]
        by_size = [m.name for m in sorted(models, key=lambda m: m.nbytes)]
        heads = page.locator("#overview thead th")
        size = heads.filter(has_text=re.compile(r"^Size"))
        size.locator("button").click()
        assert size.get_attribute("aria-sort") == "ascending"
        assert column(page, "overview", 0) == by_size
        texts = column(page, "overview", 1)
        assert texts != sorted(texts)  # sorting words would give another order
        size.locator("button").click()
        assert size.get_attribute("aria-sort") == "descending"
        assert column(page, "overview", 0) == by_size[::-1]
        assert page.locator("#overview [aria-sort=ascending], #overview [aria-sort=descending]").count() == 1


def test_what_has_no_number_comes_last_in_either_order(browser, file, report):
    with opened(browser, file) as seen:
        page = seen.page
        divergence = page.locator("#overview thead button").filter(has_text="KL")
        by_kl = [m.name for m in sorted(report.models, key=lambda m: m.behaviour.against.kl.mean.value)]
        divergence.click()
        assert column(page, "overview", 0) == [*by_kl, report.base.name]
        divergence.click()
        assert column(page, "overview", 0) == [*by_kl[::-1], report.base.name]


@pytest.mark.parametrize("key", ["Enter", "Space"])
def test_tables_sort_by_keyboard(browser, file, report, key):
    with opened(browser, file) as seen:
        page = seen.page
        page.locator("#overview thead button").first.focus()
        page.keyboard.press(key)
        assert column(page, "overview", 0) == sorted([report.base.name, *SHOWN])
        page.keyboard.press("Tab")
        page.keyboard.press(key)
        assert column(page, "overview", 0)[-1] == report.base.name


def test_every_column_of_every_table_sorts(browser, file):
    with opened(browser, file) as seen:
        result = seen.page.evaluate(
            """() => [...document.querySelectorAll("table")].flatMap((table) =>
                 [...table.tHead.rows[0].cells].map((head, i) => {
                   const read = () => [...table.tBodies[0].rows].map((row) => row.cells[i].dataset.v);
                   head.querySelector("button").click();
                   const up = head.dataset.sort === "number" ? read().filter(Boolean).map(Number) : [];
                   return [head.textContent, head.getAttribute("aria-sort"), up.every((v, k) => !k || up[k - 1] <= v)];
                 }))"""
        )
        assert len(result) > 60
        assert [each for each in result if each[1:] != ["ascending", True]] == []


@pytest.mark.parametrize(("scheme", "width"), [("light", 1280), ("dark", 360)])
def test_text_stands_out_in_both_themes(browser, file, scheme, width):
    """WCAG AA: 4.5 to 1 for text."""
    with opened(browser, file, scheme, width) as seen:
        page = seen.page
        page.evaluate(OPEN_ALL)
        background = page.evaluate("getComputedStyle(document.documentElement).backgroundColor")
        found = page.evaluate(CONTRAST)
        assert len(found) > 15
        assert [each for each in found if each["contrast"] < 4.5] == []
        page.locator("#theme").click()
        assert page.evaluate("getComputedStyle(document.documentElement).backgroundColor") != background
        assert [each for each in page.evaluate(CONTRAST) if each["contrast"] < 4.5] == []


def test_the_theme_follows_the_system_until_it_is_chosen(browser, file):
    with opened(browser, file, "dark") as seen:
        page, button = seen.page, seen.page.locator("#theme")
        scheme = "getComputedStyle(document.documentElement).colorScheme"
        assert button.inner_text() == "Light theme"
        page.emulate_media(color_scheme="light")
        expect(button).to_have_text("Dark theme")
        button.click()
        assert page.evaluate(scheme) == "dark"
        assert button.inner_text() == "Light theme"
        page.emulate_media(color_scheme="dark")
        button.click()
        assert page.evaluate(scheme) == "light"


@pytest.mark.parametrize("width", [1280, 768, 360])
def test_the_page_never_scrolls_sideways(browser, file, width):
    with opened(browser, file, width=width) as seen:
        page = seen.page
        page.evaluate(OPEN_ALL)
        assert page.evaluate("document.documentElement.scrollWidth") == width
        # A table wider than its box scrolls inside it, also by keyboard.
        box = page.locator(".scrolls").first
        assert box.get_attribute("tabindex") == "0"
        assert (
            page.evaluate(
                "() => [...document.querySelectorAll('body *')].filter((e) => !e.closest('.scrolls, .skip') && "
                "e.checkVisibility() && e.getBoundingClientRect().right > innerWidth + 1).length"
            )
            == 0
        )


def test_long_names_do_not_widen_the_page(browser, tmp_path):
    long = "a/very-long_organisation.name/" + "Model-With-A-Name-That-Does-Not-End-" * 4 + "Q4_K_M.gguf"
    report = example(SHOWN[:3])
    models = tuple(dataclasses.replace(m, name=f"{index}{long}") for index, m in enumerate(report.models))
    path = tmp_path / "long.html"
    write_page(
        dataclasses.replace(report, models=models, base=dataclasses.replace(report.base, name=long)), path
    )
    with opened(browser, path, width=360) as seen:
        assert seen.page.evaluate("document.documentElement.scrollWidth") == 360


def test_the_keyboard_reaches_everything_and_shows_where_it_is(browser, file):
    with opened(browser, file) as seen:
        page = seen.page
        page.keyboard.press("Tab")
        skip = page.locator(".skip")
        assert skip.evaluate("link => link === document.activeElement")
        assert skip.bounding_box()["y"] > 0  # hidden until it has the focus
        page.keyboard.press("Enter")
        assert page.evaluate("location.hash") == "#verdict"
        expected = page.evaluate(
            """() => [...document.querySelectorAll("a[href], button, input, summary, [tabindex='0']")]
                 .filter((e) => e.checkVisibility() && !(e.type === "radio" && !e.checked)).length"""
        )
        page.evaluate("() => { document.activeElement.blur(); window.getSelection().removeAllRanges(); }")
        page.locator(".skip").focus()
        reached = unseen = 0
        for _ in range(expected):
            state = page.evaluate(
                """() => {
                     const e = document.activeElement;
                     if (e === document.body || e.dataset.reached) return null;
                     e.dataset.reached = "yes";
                     const drawn = e.type === "radio" ? e.nextElementSibling : e;
                     const style = getComputedStyle(drawn);
                     return style.outlineStyle !== "none" && parseFloat(style.outlineWidth) >= 2;
                   }"""
            )
            reached += state is not None
            unseen += state is False
            page.keyboard.press("Tab")
        assert (reached, unseen) == (expected, 0)


def test_folds_open_by_keyboard(browser, file):
    with opened(browser, file) as seen:
        fold = seen.page.locator("#tokens details.fold").nth(1)
        assert fold.get_attribute("open") is None
        fold.locator("> summary").focus()
        seen.page.keyboard.press("Enter")
        assert fold.locator(".context").first.is_visible()


def test_what_files_hold_stays_text(browser, tmp_path):
    path = tmp_path / "hostile.html"
    write_page(example(SHOWN[:2], hostile=True), path)
    with opened(browser, path) as seen:
        page = seen.page
        page.evaluate(OPEN_ALL)
        assert page.evaluate("window.hacked") is None
        assert page.locator("img").count() == 0
        assert page.locator("script").count() == 1
        assert page.locator("h1").inner_text().startswith("demo" + clean(HOSTILE))
        assert clean(HOSTILE).replace(" ", "␣") in page.locator("#tokens mark bdi").first.inner_text()
        assert clean(HOSTILE) in page.locator("#method").inner_text()
        assert seen.complaints == []


def test_without_its_script_the_page_still_tells_everything(browser, file, report):
    with opened(browser, file, script=False) as seen:
        page = seen.page
        assert column(page, "overview", 0) == [report.base.name, *SHOWN]
        assert page.locator("svg.scatter:visible").count() == 1
        assert page.locator("thead button").count() == 0
        assert not page.locator("#theme").is_visible()
        assert not page.locator("#shared-scale").is_visible()
        # The picker is the style sheet's work alone.
        page.locator(".picker label").nth(1).click()
        assert page.locator(".chart-perplexity").is_visible()


@pytest.mark.parametrize(
    ("gone", "said"),
    [
        ("behaviour", "no text was given. Compare again with a text (--text)"),
        ("weights", "No weights were compared."),
        ("speed", None),
    ],
)
def test_a_page_without_some_numbers(browser, tmp_path, report, gone, said):
    path = tmp_path / "report.html"
    write_page(without(report, gone), path)
    with opened(browser, path, width=360) as seen:
        page = seen.page
        section = page.locator(f"#{gone}")
        if said is None:
            assert section.count() == 0
        else:
            assert section.locator("table, svg").count() == 0
            assert said in section.locator(".nothing").inner_text()
        assert page.locator("svg.scatter:visible .point").count() == len(SHOWN) + 1
        assert page.evaluate("document.documentElement.scrollWidth") == 360
        assert seen.complaints == []


def test_all_that_the_example_has_is_used():
    """The example has each family and what the page treats apart: norms that nobody changes, tensors outside layers."""
    assert {name.split(":")[0] for name in SHOWN} == {name.split(":")[0] for name in FORMATS}
    assert any(len(shape) == 1 for shape in KINDS.values())
    assert set(OUTSIDE) == {"embed_tokens", "norm"}


def test_the_page_of_a_real_comparison(browser, tmp_path, capsys):
    path = tmp_path / "demo.html"
    options = ("--text", "demo", "--windows", "1", "--window", "64", "--workers", "1", "--html", path)
    result = call(capsys, "compare", "demo", "--try", "gguf:q4_0", "--try", "gguf:q8_0", *options)
    assert result.code == 0, result.err
    with opened(browser, path, width=360) as seen:
        page = seen.page
        assert page.locator(".standing h3").all_inner_texts()[:2] == ["gguf:q4_0", "gguf:q8_0"]
        assert page.locator("svg.scatter:visible .point").count() == 3
        assert page.locator(".ridge .shape").count() == 2
        assert len(boxes(page.locator(".heat-figure").first.locator("rect.cell"))) == 7 * 4 + 2
        assert page.locator("#tokens mark").count() > 2
        assert page.evaluate("document.documentElement.scrollWidth") == 360
        assert seen.requests == [path.as_uri()]
        assert seen.complaints == []

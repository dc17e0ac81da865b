"""Exported pages, opened from disk in a real browser with no network."""

from __future__ import annotations

import re

import numpy as np
import pytest
from axe import violations
from playwright.sync_api import expect
from shown import levels_view, sample, stats, window

from saelab.analysis.results import Examples, FeatureCard, LatentTable, LogitLens
from saelab.widgets import CardView, FeaturesView, Lines, SampleView, Selection, Table, Text, Views
from saelab.widgets import page as views_page

HOSTILE = [
    "<img src=x onerror='window.hacked=1'>",
    "\u202eabc",
    "\u200b",
    "\n",
    "</script><script>window.hacked=2</script>",
]
N = 1_024


def fake_card(latent: int) -> FeatureCard:
    rng = np.random.default_rng(latent)
    windows = []
    for i in range(20):
        values = (rng.random(21) * (rng.random(21) < 0.4)).astype(np.float32)
        values[10] = 2.0 - i * 0.05
        names = [*HOSTILE, *(f" word{j}" for j in rng.integers(0, 800, 16))]
        windows.append(window(i, names, values, document=3))
    lens = LogitLens(latent, ((" up", 1.0), (HOSTILE[0], 0.5)), ((" down", -1.0),), 0.3)
    chosen = tuple(windows)
    return FeatureCard(
        stats(latent, high=2.0),
        Examples(latent, "top", chosen),
        Examples(latent, "quantile", chosen),
        lens,
        f"label {latent}",
    )


@pytest.fixture(scope="module")
def exported(tmp_path_factory):
    rng = np.random.default_rng(0)
    density = rng.random(N).astype(np.float32)
    names = tuple(f"name{j}" for j in range(N))
    table = LatentTable((density * 9_999).astype(np.int64), density, density, density, density * 2, names)
    marks = {
        "notes": lambda: {5: HOSTILE[0]},
        "tags": lambda: {HOSTILE[0]: (5,)},
        "lists": lambda: {"few": (900, 5, 3)},
    }
    browser = FeaturesView(table, questions={"card": fake_card, **marks})
    tokens = [*HOSTILE, " plain"]
    codes = rng.random((len(tokens), N)) * (rng.random((len(tokens), N)) < 0.01)
    text = SampleView(sample(tokens, codes), questions={"card": fake_card}, selection=browser.selection)
    sections = [
        Text("Heading <b>", ["A paragraph & more"]),
        Table("Scores", ["", "a"], [["fvu", 0.1]]),
        Views("All", [browser]),
        Views("One", [text], ["caption"]),
        Lines("Curve", [1, 2, 3], {"fvu": [0.5, 0.2, 0.1]}, "step"),
    ]
    return views_page(tmp_path_factory.mktemp("page") / "page's.html", "A page", sections)


def test_size(exported):
    assert exported.stat().st_size < 15e6


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_it_works_from_disk_with_no_network(exported, page, scheme):
    page.emulate_media(color_scheme=scheme)
    asked = []
    page.on("request", lambda r: asked.append(r.url))
    page.goto(exported.as_uri())
    page.wait_for_selector(".sl-row")
    page.locator(".sl-row").nth(3).click()
    latent = page.locator(".sl-row.sl-chosen").get_attribute("data-latent")
    page.wait_for_selector(f'.sl-card[data-latent="{latent}"]')
    expect(page.locator(".sl-card h3")).to_have_text(f"#{latent} label {latent}", use_inner_text=True)
    expect(page.locator(".sl-card .sl-windows li")).to_have_count(40)
    # every latent is in it: the last too
    page.locator(".sl-box").fill(str(N - 1))
    page.keyboard.press("Enter")
    page.wait_for_selector(f'.sl-card[data-latent="{N - 1}"]')
    # the text follows the selection
    expect(page.locator(".sl-legend")).to_contain_text(f"#{N - 1}", use_inner_text=True)
    # a name filters; what needs a kernel says so
    page.locator(".sl-box").fill("name77")
    expect(page.locator(".sl-row")).to_have_count(11)
    page.locator(".sl-box").fill("thank you")
    page.keyboard.press("Enter")
    expect(page.locator(".sl-banner:visible")).to_contain_text("only a notebook can say", use_inner_text=True)
    page.locator(".sl-box").fill("")
    expect(page.locator(".sl-banner:visible")).to_have_count(0)
    # lists are kept, columns sort, and what was chosen before is chosen again
    page.locator(".sl-set").select_option("list:few")
    expect(page.locator(".sl-row")).to_have_count(3)
    page.locator(".sl-head[data-sort=latent]").click()
    expect(page.locator(".sl-row .sl-number")).to_have_text(["#3", "#5", "#900"], use_inner_text=True)
    page.locator(".sl-row").nth(1).click()
    page.wait_for_selector(".sl-card[data-latent='5'] .sl-note")
    expect(page.locator(".sl-note")).to_have_text(HOSTILE[0], use_inner_text=True)
    expect(page.locator(".sl-mark bdi")).to_have_text([HOSTILE[0], "few"], use_inner_text=True)
    page.locator(".sl-list").focus()
    page.keyboard.press("b")
    page.wait_for_selector(f'.sl-card[data-latent="{N - 1}"]')
    page.keyboard.press("b")
    expect(page.locator(".sl-count")).to_have_text(
        re.compile(r"^1,024 of 1,024 latents, "), use_inner_text=True
    )
    # markup and directions are shown, not obeyed
    assert page.evaluate("window.hacked") is None
    shown = page.locator(".sl-text").inner_text()
    assert "<img src=x" in shown
    assert "U+202E" in shown
    assert "U+200B" in shown
    assert "↵" in shown
    assert [u for u in asked if not u.startswith(("file:", "blob:", "data:"))] == []
    assert page.errors == []


def test_two_labs_of_a_page_stay_apart(tmp_path, page):
    density = np.linspace(0.5, 0.01, 40).astype(np.float32)
    views = []
    for lab in ("one", "other"):
        names = tuple(f"{lab}{j}" for j in range(40))
        lines = LatentTable((density * 999).astype(np.int64), *[density] * 4, names)
        marks = {"notes": lambda lab=lab: {3: f"note of {lab}"}, "tags": dict, "lists": dict}
        views.append(FeaturesView(lines, questions={"card": lambda j: fake_card(j), **marks}))
    path = views_page(tmp_path / "both.html", "Both", [Views("", views)])
    page.goto(path.as_uri())
    one, other = page.locator(".sl-view").nth(0), page.locator(".sl-view").nth(1)
    shown = other.locator(".sl-card").get_attribute("data-latent")
    one.locator(".sl-row[data-latent='3']").click()
    expect(one.locator(".sl-card")).to_have_attribute("data-latent", "3")
    expect(one.locator(".sl-note")).to_have_text("note of one")
    expect(other.locator(".sl-card")).to_have_attribute("data-latent", shown)
    expect(other.locator(".sl-row.sl-chosen")).to_have_attribute("data-latent", shown)
    one.locator(".sl-box").fill("one1")
    expect(one.locator(".sl-row")).to_have_count(11)
    other.locator(".sl-row[data-latent='5']").click()
    other.locator(".sl-row[data-latent='3']").click()
    expect(other.locator(".sl-note")).to_have_text("note of other")
    expect(other.locator(".sl-name").first).to_have_text("other0")
    other.locator(".sl-list").press("b")
    expect(other.locator(".sl-card")).to_have_attribute("data-latent", "5")
    expect(one.locator(".sl-card")).to_have_attribute("data-latent", "3")
    assert page.errors == []


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_nothing_bars_anybody_from_a_page(exported, page, scheme):
    """By the rules of axe-core, on a telephone too, where the page does not scroll sideways."""
    page.emulate_media(color_scheme=scheme)
    page.goto(exported.as_uri())
    page.wait_for_selector(".sl-row")
    page.locator(".sl-row").nth(3).click()
    page.locator(".sl-text .sl-token").nth(3).click()
    page.wait_for_selector(".sl-card .sl-lens")
    page.wait_for_selector(".sl-chip")
    for width in (1400, 375):
        page.set_viewport_size({"width": width, "height": 900})
        assert violations(page) == []
        assert page.evaluate("document.documentElement.scrollWidth") == width


RIGHT_TO_LEFT = ["<s>", "שלום", " עולם", ", 12 a", "\n", "code\n   ", " if x"]


def test_texts_run_as_they_are_read(page, tmp_path):
    """Words of Hebrew stand right to left whatever tokens they are cut into; indentation is in its line."""
    codes = np.ones((len(RIGHT_TO_LEFT), 2))
    view = SampleView(sample(RIGHT_TO_LEFT, codes), questions={"card": fake_card})
    path = views_page(tmp_path / "rtl.html", "Texts", [Views("", [view])])
    still = tmp_path / "still.html"
    still.write_text(f"<!doctype html><meta charset=utf-8><div>{view.html()}</div>", encoding="utf-8")
    for file, tokens in ((path, ".sl-text .sl-token"), (still, "mark")):
        page.goto(file.as_uri())
        page.wait_for_selector(tokens)
        # of each token all boxes that hold anything: one may be on two lines
        held = "[...e.getClientRects()].filter((r) => r.width).map((r) => [r.left, r.top])"
        boxes = page.locator(tokens).evaluate_all(f"all => all.map((e) => {held})")
        hello, world, rest = (boxes[i][0][0] for i in (1, 2, 3))
        assert hello > world > rest
        assert boxes[1][0][1] == boxes[2][0][1]
        code, spaces = boxes[5]
        assert spaces[1] > code[1] > boxes[1][0][1]
        assert boxes[6][0][1] == spaces[1]
        assert boxes[6][0][0] > spaces[0] == code[0]


@pytest.mark.parametrize("width", [375, 500, 700, 1100])
def test_a_view_fits_the_place_that_it_has(exported, page, width):
    """Not the window, of which a notebook's output is a part."""
    page.goto(exported.as_uri())
    page.wait_for_selector(".sl-row")
    page.locator(".sl-row").nth(3).click()
    page.wait_for_selector(".sl-card .sl-lens")
    page.evaluate(
        f"() => document.querySelectorAll('.sl-root').forEach(e => e.parentElement.style.width = '{width}px')"
    )
    # of what has a box of its own; spaces at the end of a line hang over
    over = "e.getBoundingClientRect().right - e.closest('.sl-root').getBoundingClientRect().right"
    boxes = (
        ".sl-root :is(h3, h4, dl, ol, li, svg, figure, button, input, select, .sl-list, .sl-place, .sl-value)"
    )
    page.wait_for_function(f"() => document.querySelector('.sl-root').clientWidth === {width}")
    widest = page.locator(boxes).evaluate_all(f"all => Math.max(...all.map(e => {over}))")
    assert widest <= 1
    below = page.locator(".sl-browser > .sl-place").bounding_box()
    beside = page.locator(".sl-list").bounding_box()
    assert (below["y"] > beside["y"]) == (width < 640)


def test_the_table_of_a_wide_sae_draws_few_rows(browser, tmp_path):
    """65,536 latents: only the rows in sight are elements."""
    n = 65_536
    density = np.random.default_rng(0).random(n).astype(np.float32)
    table = LatentTable(np.ones(n, np.int64), density, density, density, density, ("",) * n)

    class WithoutCards(FeaturesView):
        exported = FeaturesView.first

    path = WithoutCards(table, questions={"card": fake_card}).export(tmp_path / "wide.html")
    page = browser.new_page()
    page.goto(path.as_uri())
    page.wait_for_selector(".sl-row")
    expect(page.locator(".sl-count")).to_contain_text("65,536 of 65,536", use_inner_text=True)
    assert page.locator(".sl-row").count() < 60
    page.locator(".sl-list").evaluate("e => e.scrollTop = e.scrollHeight")
    page.wait_for_function("() => document.querySelectorAll('.sl-row').length > 5")
    assert page.locator(".sl-row").count() < 60
    page.close()


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_a_signed_latent_shows_both_poles(signed_lab, page, tmp_path, scheme):
    """From training to a page: an abs_topk SAE of the embedded model."""
    frame = signed_lab.store.latents()
    latent = int(np.minimum(frame["negative"], frame["count"] - frame["negative"]).to_numpy().argmax())
    text = signed_lab.tokens(
        "Rosa gave the basket to Hugo in 1732, and Hugo gave it back.", latent, follow=True
    )
    path = views_page(
        tmp_path / "poles.html", "Poles", [Views("One", [text]), Views("All", [signed_lab.features()])]
    )
    page.emulate_media(color_scheme=scheme)
    page.goto(path.as_uri())
    page.wait_for_selector(f'.sl-card[data-latent="{latent}"]')

    # the card: what the store holds of each pole
    sections = page.locator(".sl-card section").filter(has=page.locator(".sl-windows"))
    for at, (kind, title) in enumerate({"top": "positive pole", "bottom": "negative pole"}.items()):
        section = sections.nth(at)
        assert title in section.locator("h4").inner_text()
        stored = [e.value for e in signed_lab.store.examples(latent, 20, kind)]
        shown = section.locator("li > .sl-value").all_inner_texts()
        assert [float(v.replace("\N{MINUS SIGN}", "-")) for v in shown] == pytest.approx(stored, rel=5e-3)
        peaks = section.locator(".sl-peak")
        signs = {"sl-negative" in c for c in peaks.evaluate_all("all => all.map((e) => e.className)")}
        assert signs == {kind == "bottom"}
    expect(page.locator(".sl-lens h5")).to_have_text(
        ["+positive pole", "\N{MINUS SIGN}negative pole"], use_inner_text=True
    )
    expect(page.locator(".sl-zero")).to_have_count(1)

    # hue and line differ by sign, on the card and in the text
    looks = {}
    names = "['backgroundColor', 'backgroundImage', 'boxShadow']"
    style = f"e => {names}.map((name) => getComputedStyle(e)[name])"
    for name, at in (("positive", 0), ("negative", 1)):
        looks[name] = sections.nth(at).locator(".sl-peak").first.evaluate(style)
    assert looks["positive"][0] != looks["negative"][0]
    assert (looks["positive"][1], looks["negative"][2]) == ("none", "none")
    assert "repeating-linear-gradient" in looks["negative"][1]
    codes = signed_lab.codes("Rosa gave the basket to Hugo in 1732, and Hugo gave it back.").of(latent)
    labels = page.locator(".sl-text .sl-token").evaluate_all("all => all.map((e) => e.ariaLabel)")
    assert [("minus" in label) for label in labels] == (codes < 0).tolist()
    page.locator(".sl-text .sl-token").nth(int(np.abs(codes).argmax())).hover()
    page.wait_for_selector(".sl-detail .sl-chip")
    assert page.errors == []


def test_a_view_from_elsewhere_joins_in(page, tmp_path):
    """The view of the documentation, beside one of saelab: they share the selection."""
    chosen = Selection(latents=(3, 8), latent=3)
    levels = levels_view(tmp_path)(np.linspace(0.1, 1, 10), selection=chosen)
    card = CardView(3, questions={"card": fake_card}, selection=chosen)
    path = views_page(tmp_path / "levels.html", "Levels", [Views("", [levels, card])])
    page.goto(path.as_uri())
    page.wait_for_selector('.sl-card[data-latent="3"]')
    bars = page.locator("button[aria-pressed]:not([data-switch])")
    expect(bars).to_have_text(["#3 40.0 %", "#8 90.0 %"], use_inner_text=True)
    bars.nth(1).click()
    expect(page.locator("button[aria-pressed=true]")).to_have_text("#8 90.0 %", use_inner_text=True)
    # the page holds the card that the card view had, and says so of others
    expect(page.locator(".sl-banner:visible")).to_have_text(
        re.compile(r"^This page holds no card of latent 8\."), use_inner_text=True
    )
    expect(page.locator('.sl-card[data-latent="3"]')).to_have_count(1)
    bars.first.click()
    page.wait_for_selector(".sl-banner", state="hidden")
    # choosing a window tells the other views
    page.locator(".sl-windows button").first.click()
    expect(page.locator('.sl-windows li[aria-current="true"]').first).to_be_attached()
    assert page.errors == []

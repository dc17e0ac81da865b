"""Images in a real browser: patches over their picture, cards of thumbnails; steps of a loop, lists, mixed
samples."""

from __future__ import annotations

import re

import numpy as np
import pytest
import subjects_zoo as zoo
import torch
import transformers
from PIL import Image, ImageDraw
from playwright.sync_api import expect
from shown import laid_out

import saelab
from saelab.subjects import VisionModel
from saelab.widgets import SampleView, Views
from saelab.widgets import page as views_page

COLOURS = ("crimson", "royalblue", "gold", "seagreen")


def picture(seed: int) -> Image.Image:
    """Two discs somewhere on a grey ramp, wider than it is high."""
    rng = np.random.default_rng(seed)
    image = Image.new("RGB", (160, 120))
    draw = ImageDraw.Draw(image)
    for x in range(160):
        draw.line((x, 0, x, 120), fill=(90 + x // 2,) * 3)
    for colour in rng.choice(COLOURS, 2, replace=False):
        x, y = rng.integers(0, 110), rng.integers(0, 70)
        draw.ellipse((x, y, x + 50, y + 50), fill=str(colour))
    return image


@pytest.fixture(scope="module")
def vision_lab(tmp_path_factory):
    """A ViT of random weights over 64 patches, and an SAE on its second layer."""
    torch.manual_seed(0)
    config = transformers.ViTConfig(
        hidden_size=32, num_hidden_layers=2, num_attention_heads=2, intermediate_size=64, image_size=64,
        patch_size=8,
    )  # fmt: skip
    processor = transformers.ViTImageProcessorPil(size={"height": 64, "width": 64})
    subject = VisionModel(transformers.ViTModel(config), processor)
    pictures, labels = [picture(i) for i in range(40)], [f"picture {i}" for i in range(40)]
    corpus, hook = saelab.corpora.images(pictures, labels), "layers.1"
    rows = subject.run(subject.prepare(pictures), read=[hook]).acts[hook].flatten(0, 1)
    sae = saelab.SAE.create(saelab.recipe("topk", d_in=32, d_sae=64, k=4, hook=hook), seed=0, rows=rows)
    store = saelab.index(subject, sae, corpus, tmp_path_factory.mktemp("s") / "store", progress=False)
    return saelab.Lab(subject, sae, store)


def boxes(locator) -> np.ndarray:
    """[n 4]: left, top, right, bottom of each, in pixels."""
    found = locator.evaluate_all("all => all.map((e) => { const b = e.getBoundingClientRect();"
                                 " return [b.left, b.top, b.right, b.bottom]; })")  # fmt: skip
    return np.array(found)


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_an_image_lies_under_its_patches(vision_lab, page, tmp_path, scheme):
    lab = vision_lab
    image = picture(99)
    frame = lab.store.latents()
    latent = int(frame["density"].sub(0.05).abs().where(frame["count"] > 0, np.inf).argmin())
    shown = lab.show(image, latent, follow=True)
    sections = [Views("One", [shown]), Views("All", [lab.features()])]
    path = views_page(tmp_path / "page.html", "Pictures", sections)
    page.emulate_media(color_scheme=scheme)
    page.goto(path.as_uri())
    page.wait_for_selector(f'.sl-card[data-latent="{latent}"]')
    page.wait_for_selector(".sl-sample img")
    page.wait_for_function("() => [...document.images].every((i) => i.complete && i.naturalWidth > 0)")

    # the patches fill the picture, row by row, and it keeps its shape
    (whole,) = boxes(page.locator(".sl-sample .sl-grid"))
    patches = boxes(page.locator(".sl-sample .sl-patch"))
    assert len(patches) == 64
    assert (whole[2] - whole[0]) / (whole[3] - whole[1]) == pytest.approx(160 / 120, rel=0.02)
    x, y = (np.linspace(whole[i], whole[i + 2], 9) for i in (0, 1))
    expected = [(x[c], y[r], x[c + 1], y[r + 1]) for r in range(8) for c in range(8)]
    np.testing.assert_allclose(patches, expected, atol=0.5)
    # they are shaded by the latent's codes
    codes = lab.codes(image).of(latent)
    shades = page.locator(".sl-sample .sl-patch").evaluate_all(
        "all => all.map((e) => parseFloat(e.style.getPropertyValue('--sl-alpha')))"
    )
    assert [s > 0 for s in shades] == (codes[1:] != 0).tolist()
    page.locator(".sl-sample .sl-patch").nth(21).hover()
    page.wait_for_selector(".sl-detail .sl-chip")
    expect(page.locator(".sl-detail-head")).to_have_text(re.compile(r"^patch 2,5"), use_inner_text=True)
    expect(page.locator(".sl-sample .sl-extra .sl-token")).to_have_count(1)

    # the card: the pictures of the strongest examples, each once, the peak where it is
    tiles = page.locator(".sl-card .sl-gallery").first.locator("li")
    strongest = {}
    for each in lab.store.examples(latent, 20, "top"):
        strongest.setdefault(each.document, each)
    examples = list(strongest.values())
    assert len(examples) > 3
    expect(tiles).to_have_count(len(examples))
    for tile, example in zip(tiles.all(), examples, strict=True):
        expect(tile.locator(".sl-title")).to_contain_text(f"picture {example.document}", use_inner_text=True)
        fires = np.flatnonzero(example.values[1:])
        expect(tile.locator(".sl-patch")).to_have_count(len(fires))
        if example.position:
            (area,), (peak,) = boxes(tile.locator(".sl-grid")), boxes(tile.locator(".sl-peak"))
            row, column = divmod(example.position - 1, 8)
            middle = (peak[:2] + peak[2:]) / 2 - area[:2]
            place = middle / (area[2:] - area[:2]) * 8 - 0.5
            np.testing.assert_allclose(place, (column, row), atol=0.1)
    # every picture is in the page once, whatever the cards that show it
    assert page.locator(".sl-card img").count() == page.locator(".sl-card .sl-gallery > li").count()
    assert path.stat().st_size < 1e6
    assert page.errors == []


def test_shading_is_set_by_hand_and_a_small_picture_is_seen_large(vision_lab, page, tmp_path):
    lab = vision_lab
    latent = int(lab.store.latents()["count"].argmax())
    sections = [Views("One", [lab.show(picture(99), latent)]), Views("Card", [lab.feature(latent)])]
    page.goto(views_page(tmp_path / "page.html", "Pictures", sections).as_uri())
    tile = page.locator(".sl-gallery .sl-tile").first
    expect(tile.locator("img")).to_have_js_property("complete", True)
    sliders = page.locator(".sl-shading input")
    expect(sliders).to_have_count(2)
    for slider, patches in zip(
        sliders.all(), (".sl-sample .sl-patches", ".sl-tile .sl-patches"), strict=True
    ):
        expect(slider).to_have_value("1")
        expect(page.locator(patches).first).to_have_css("opacity", "1")
        slider.focus()
        page.keyboard.press("Home")
        expect(page.locator(patches).first).to_have_css("opacity", "0")
        expect(slider).to_have_attribute("aria-valuetext", "0 %")
        page.keyboard.press("End")
        page.keyboard.press("ArrowLeft")
        expect(page.locator(patches).first).to_have_css("opacity", "0.95")
        page.keyboard.press("End")
    grid = tile.locator(".sl-grid")
    ((left, top, right, bottom),) = boxes(grid)
    grid.hover()
    expect(grid).not_to_have_css("transform", "none")
    np.testing.assert_allclose(boxes(grid), [(left, top, 2 * right - left, 2 * bottom - top)], atol=0.5)
    page.mouse.move(0, 0)
    expect(grid).to_have_css("transform", "none")
    sliders.last.focus()
    page.keyboard.press("Tab")
    expect(tile.locator(".sl-value")).to_be_focused()
    expect(grid).not_to_have_css("transform", "none")
    assert page.errors == []


def test_steps_lists_and_mixed_samples(vision_lab, page, tmp_path):
    """What a loop, a recommender and a reader of pages and pictures would show."""
    subject = zoo.denoiser_subject()
    sae = saelab.SAE.create(saelab.recipe("topk", d_in=8, d_sae=32, k=3, hook="mid@all"), seed=0)
    steps = saelab.Lab(subject, sae).show(zoo.images(1)[0])
    rng = np.random.default_rng(0)
    codes = rng.random((30, 16)) * (rng.random((30, 16)) < 0.3)
    questions = {"card": vision_lab.card}
    items = SampleView(
        laid_out("list 5", ["item"] * 5, ["Dune", "Solaris", "Roadside Picnic", "Ubik", "We"], codes[:5]),
        questions=questions,
    )
    media = vision_lab.store.document(3).media
    facets = ["token"] * 4 + ["patch"] * 12 + ["token"] * 2
    names = [" See", " this", " picture", ":", *(f"{i // 4},{i % 4}" for i in range(12)), " Nice", "."]
    mixed = SampleView(
        laid_out("line 4, grid 3x4, line", facets, names, codes[:18], media=media), questions=questions
    )
    sections = [Views("Steps", [steps]), Views("Items", [items]), Views("Mixed", [mixed])]
    page.goto(views_page(tmp_path / "page.html", "Kinds", sections).as_uri())
    expect(page.locator(".sl-view")).to_have_count(3)
    one, two, three = page.locator(".sl-view").all()
    expect(one.locator(".sl-patch")).to_have_count(64)
    expect(two.locator(".sl-items .sl-boxed")).to_have_count(5)
    expect(three.locator(".sl-sample > *")).to_have_count(4)
    before = one.locator(".sl-patch").first.get_attribute("aria-label")
    slider = one.locator(".sl-calls input")
    slider.focus()
    page.keyboard.press("ArrowRight")
    expect(one.locator("output")).to_have_text("call 1 of 0 to 3")
    assert one.locator(".sl-patch").first.get_attribute("aria-label") != before
    assert two.locator(".sl-items .sl-boxed").all_inner_texts()[1] == "Solaris"
    assert three.locator(".sl-sample > *").evaluate_all("all => all.map((e) => e.classList[0])") == [
        "sl-text", "sl-grid", "sl-apart", "sl-text",
    ]  # fmt: skip
    top, grid, _, bottom = boxes(three.locator(".sl-sample > *"))
    assert top[3] <= grid[1]
    assert grid[3] <= bottom[1]
    assert page.errors == []

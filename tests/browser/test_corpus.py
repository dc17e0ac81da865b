"""Texts by layers, by several latents and against each other, a long one, and the documents of a store: one
page, opened from disk with no network."""

from __future__ import annotations

import numpy as np
import pytest
from axe import violations
from playwright.sync_api import expect
from shown import card, sample

from saelab.widgets import SampleView, Views
from saelab.widgets import page as views_page

HOSTILE = "<img src=x onerror='window.hacked=1'>"
TEXT = f"Tina gave the basket to Hugo.\n{HOSTILE} \u202e"
N = 50_000


@pytest.fixture(scope="module")
def exported(small_lab, tmp_path_factory):
    latent = int(small_lab.store.latents()["count"].argmax())
    names = [HOSTILE if i == 40_000 else f" w{i}" for i in range(N)]
    dense = np.zeros((N, 4), np.float32)
    dense[:, 0] = dense[40_000, 3] = 1
    views = [
        small_lab.tokens(TEXT, latents=[latent, (latent + 1) % 64], layer="loss"),
        small_lab.tokens(TEXT, latent, against="Rosa gave the red basket to Hugo."),
        SampleView(sample(names, dense), questions={"card": card}, latent=3),
        small_lab.corpus(3, follow=False),
    ]
    path = tmp_path_factory.mktemp("corpus") / "page.html"
    return views_page(path, "Texts", [Views("A view", [view]) for view in views])


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_texts_and_documents_in_a_page(exported, page, scheme):
    page.emulate_media(color_scheme=scheme)
    asked = []
    page.on("request", lambda r: asked.append(r.url))
    page.goto(exported.as_uri())
    page.wait_for_selector(".sl-docs-open [data-at]")
    expect(page.locator(".sl-view")).to_have_count(4)
    layered, compared, long, corpus = page.locator(".sl-view").all()
    expect(layered.locator(".sl-legend")).to_contain_text("nats", use_inner_text=True)
    layered.locator("[data-at]").nth(2).focus()
    page.keyboard.press("L")
    expect(layered.locator(".sl-several-key li")).to_have_count(2)
    compared.locator("[data-at]").nth(4).hover()
    expect(compared.locator(".sl-differing .sl-chip").nth(3)).to_be_attached()
    # of 50,000 tokens those in sight are elements, wherever it is scrolled to
    for share in (0, 0.3, 0.99):
        long.locator(".sl-scrolled").evaluate("(e, s) => { e.scrollTop = s * e.scrollHeight; }", share)
        page.wait_for_timeout(50)
        assert 100 < long.locator("[data-at]").count() < 3_000
    long.locator(".sl-find input").fill("onerror")
    expect(long.locator(".sl-found")).to_have_text(HOSTILE, use_inner_text=True)
    expect(long.locator(".sl-found")).to_be_visible()
    # the documents: by the keyboard
    corpus.locator(".sl-docs").focus()
    page.keyboard.press("ArrowDown")
    page.wait_for_selector(".sl-opened >> text=document 4")
    assert corpus.locator(".sl-doc").count() < 40
    for width in (1400, 600):
        page.set_viewport_size({"width": width, "height": 900})
        assert violations(page) == []
        assert page.evaluate("document.documentElement.scrollWidth") == width
    assert page.evaluate("window.hacked") is None
    assert [u for u in asked if not u.startswith(("file:", "blob:", "data:"))] == []
    assert page.errors == []

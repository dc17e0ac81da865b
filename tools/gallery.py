"""Takes the pictures of the README and of docs/gallery.md, light and dark, and writes that page.

.venv/bin/python tools/gallery.py [NAME ...]    all, or those named

The README's comes out of a real JupyterLab, the others out of exported pages. Look at each before committing.
"""

from __future__ import annotations

import io
import sys
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple

from PIL import Image
from playwright.sync_api import sync_playwright

import saelab
from saelab.analysis import attribution_graph, circuit, prompt_task
from saelab.corpora.world_lexicon import RUDE
from saelab.embedded.tasks import task_prompts

ROOT = Path(__file__).parents[1]
sys.path.insert(0, str(ROOT / "tests"))

from real_lab import CHROMIUM, FLAGS, open_notebook, run_all, running_lab, write_notebook  # noqa: E402

IMAGES = ROOT / "docs" / "images"
PAGE = ROOT / "docs" / "gallery.md"
MOST_BYTES = 2 << 20
"""Of all pictures."""
TALLEST = 900
TEXT = "When Rosa and Tobin went to the market, Rosa gave the basket to"
CELLS = (
    f"import saelab\n\nlab = saelab.Lab.embedded()\nlab.show({TEXT!r})",
    "lab.features()",
)


class Picture(NamedTuple):
    """A view, and what a person does before the picture is taken."""

    title: str
    code: str
    """as a person types it"""
    said: str
    then: Callable[[Any], None] = lambda page: None
    width: int = 1100


def _choose(selector: str, nth: int = 0) -> Callable[[Any], None]:
    return lambda page: page.locator(selector).nth(nth).click()


PICTURES = {
    "map": Picture(
        "A map of all latents",
        'lab.map(method="tsne")',
        "Near are latents of like decoder directions; beside it, how many neighbours the picture keeps.",
    ),
    "features": Picture(
        "The browser", "lab.features()", "Every latent, to sort and search, beside the card of one.",
        _choose(".sl-row", 3),
    ),
    "card": Picture("A card", "lab.feature(3)", "When a latent fires, what it argues for, its examples."),
    "tokens": Picture(
        "A text", f"lab.show({TEXT!r}, with_card=True)", "Which latents fire on which token.",
        lambda page: (_choose(".sl-text .sl-token", 11)(page), _choose(".sl-detail .sl-chip")(page)),
    ),
    "densities": Picture("Densities", "lab.densities()", "How often latents fire; a bar chooses them."),
    "steer": Picture(
        "Steering",
        'lab.steer("Once upon a time", {7: 1.0})',
        "The text as it is, steered, and pushed as far along a random direction.",
    ),
    "corpus": Picture(
        "The documents",
        'lab.corpus(3, follow=True)',
        "What was indexed, searched and sorted; one as a heatmap of the chosen latent.",
    ),
    "compare": Picture(
        "Two SAEs",
        'lab.compare("blocks.1.hook_resid_post")',
        "Which latents of two SAEs are matched, beside chance, and both cards.",
    ),
    "heads": Picture(
        "Attention heads",
        f'lab.heads({TEXT!r}, 109, sae="blocks.2.attn.hook_z")',
        "Which heads, from which tokens, wrote a latent; a head's pattern and latents; the way back.",
        lambda page: (
            _choose(".sl-edge")(page), _choose(".sl-way summary")(page), page.evaluate("scrollTo(0, 0)")
        ),
    ),
    "circuit": Picture(
        "A circuit",
        "lab.circuit(found)",
        "Which heads do a task, and how much of it as their number grows, beside random sets.",
    ),
    "graph": Picture(
        "An attribution graph",
        "lab.circuit(graph)",
        "What brought the model to its next token, by layer and position: pruned, pinned, with cards.",
    ),
    "erase": Picture(
        "Erasing",
        "lab.erase('rudeness', rude, polite)",
        "A concept's latents, its gate, and texts before and after, beside what is lost elsewhere.",
    ),
    "board": Picture(
        "A board", "lab.board(lab.map(), lab.features(), lab.densities())", "Views in one cell, linked.",
        _choose(".sl-row", 3), 1500,
    ),
}  # fmt: skip


def main() -> None:
    wanted = sys.argv[1:] or ["lab", *PICTURES]
    with sync_playwright() as playwright, tempfile.TemporaryDirectory() as empty:
        browser = playwright.chromium.launch(executable_path=CHROMIUM, args=FLAGS)
        if "lab" in wanted:
            _notebook(browser, Path(empty))
        lab = saelab.Lab.embedded()
        requests = [d.text for d in saelab.corpora.world(seed=100, n_documents=3_000, families=["manners"])]
        samples: dict[str, Any] = {
            "rude": [text for text in requests if any(each in text.lower() for each in RUDE)][:120],
            "polite": [text for text in requests if not any(each in text.lower() for each in RUDE)][:120],
        }
        if "circuit" in wanted:
            samples["found"] = _found(lab.subject)
        if "graph" in wanted:
            saes = [saelab.load_sae(saelab.embedded.sae_folder(hook)) for hook in saelab.embedded.SAE_HOOKS]
            samples["graph"] = attribution_graph(lab.subject, saes, TEXT, max_logits=3)
        for name, picture in PICTURES.items():
            if name in wanted:
                view = eval(picture.code, {"lab": lab, **samples})
                _views(browser, view.export(Path(empty) / f"{name}.html"), name, picture)
        browser.close()
    PAGE.write_text(_page())
    total = sum(path.stat().st_size for path in IMAGES.glob("*.png"))
    print(f"{total:,} bytes in all")
    assert total <= MOST_BYTES, f"pictures must be of {MOST_BYTES:,} bytes at most"


def _found(subject: Any) -> Any:
    """The circuit of a task that the embedded model does."""
    p = task_prompts("indirect object", subject.to_tokens, 64, 5)
    return circuit(
        subject, prompt_task(subject, p.clean, p.corrupt, p.right, p.wrong, name="indirect object")
    )


def _notebook(browser: Any, empty: Path) -> None:
    """The picture in the README."""
    folder, home = empty / "folder", empty / "home"
    folder.mkdir()
    home.mkdir()
    write_notebook(folder / "lab.ipynb", CELLS)
    with running_lab(folder, home) as server, _opened(browser, 1300, 1000) as page:
        open_notebook(page, server, "lab.ipynb")
        run_all(page, 120_000)
        page.wait_for_selector(".sl-row")
        # what a person does: a token, one of its latents; its card and its place in the list follow
        page.locator(".sl-text .sl-token").nth(11).click()
        page.locator(".sl-detail .sl-chip").first.click()
        page.wait_for_selector(".sl-browser .sl-card")
        page.wait_for_timeout(1_500)
        if (news := page.get_by_role("button", name="No", exact=True)).count():
            news.click()
            page.wait_for_timeout(1_000)
        _save(page.screenshot(), "lab")


def _views(browser: Any, path: Path, name: str, picture: Picture) -> None:
    """A view in both themes."""
    for theme in ("light", "dark"):
        with _opened(browser, picture.width, TALLEST + 200, theme) as page:
            page.goto(path.as_uri())
            page.wait_for_selector(".sl-root .sl-body > *")
            page.wait_for_timeout(1_500)
            picture.then(page)
            page.wait_for_timeout(1_500)
            page.mouse.move(0, 0)
            box = page.locator(".sl-beside-views, .sl-root").first.bounding_box()
            clip = {
                "x": box["x"] - 8, "y": box["y"] - 8, "width": box["width"] + 16,
                "height": min(box["height"] + 16, TALLEST),
            }  # fmt: skip
            _save(page.screenshot(clip=clip, full_page=True), f"{name}-{theme}")


@contextmanager
def _opened(browser: Any, width: int, height: int, theme: str = "light") -> Iterator[Any]:
    page = browser.new_page(
        viewport={"width": width, "height": height}, color_scheme=theme, reduced_motion="reduce"
    )
    try:
        yield page
    finally:
        page.close()


def _save(png: bytes, name: str) -> None:
    """Few colours are enough for an interface, and keep the file small."""
    picture = Image.open(io.BytesIO(png)).convert("RGB").quantize(128, dither=Image.Dither.NONE)
    IMAGES.mkdir(exist_ok=True)
    out = IMAGES / f"{name}.png"
    picture.save(out, optimize=True)
    print(f"{out.relative_to(ROOT)}: {picture.width} x {picture.height}, {out.stat().st_size:,} bytes")


def _page() -> str:
    parts = [
        "# Gallery\n\nOf the embedded lab, `lab = saelab.Lab.embedded()`, as `make gallery` took them. "
        'Each is also a page without a kernel: `view.export("view.html")`.\n'
    ]
    for name, (title, code, said, *_) in PICTURES.items():
        parts.append(
            f"## {title}\n\n`{code}`: {said[0].lower()}{said[1:]}\n\n<picture>\n"
            f'  <source media="(prefers-color-scheme: dark)" srcset="images/{name}-dark.png">\n'
            f'  <img alt="{title}" src="images/{name}-light.png">\n</picture>\n'
        )
    return "\n".join(parts)


if __name__ == "__main__":
    main()

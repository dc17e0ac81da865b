"""A view is its .py, its .js and one line: nothing else knows which there are, and others may bring more."""

from __future__ import annotations

import json
import re
from pathlib import Path

import numpy as np
import pytest
from shown import card, chunks, decoded, levels_view

import saelab.widgets
from saelab.types import ConfigError
from saelab.widgets import CardView, SampleView, Selection, View, WatchView, assets

ROOT = Path(__file__).parents[2]
PLACES = (
    "saelab/widgets/*.py saelab/*.py saelab/lab/*.py widgets/shared/*.* widgets/views/*.* pyproject.toml"
).split()
VIEWS = [v for v in vars(saelab.widgets).values() if isinstance(v, type) and issubclass(v, View) and v.kind]


@pytest.mark.parametrize("view", VIEWS, ids=lambda view: view.kind)
def test_nothing_else_knows_a_view(view):
    own = {Path(view.__module__.replace(".", "/") + ".py"), Path(f"widgets/views/{view.kind}.js")}
    names = re.compile(rf"{view.__name__}|views/{view.kind}\b|{view.__module__}\b")
    places = {
        path.relative_to(ROOT): len(names.findall(path.read_text()))
        for pattern in PLACES
        for path in ROOT.glob(pattern)
    }
    assert own < places.keys()
    known = {path for path, found in places.items() if found} - own
    # lab.tokens is lab.show for texts; what is watched is a run, not a Lab
    more = {SampleView: {Path("saelab/lab/session.py")}, WatchView: {Path("saelab/lab/watching.py")}}
    assert known == {Path("saelab/widgets/__init__.py")} | more.get(view, set())
    lines = (ROOT / "saelab/widgets/__init__.py").read_text().splitlines()
    exported, *made = [line.strip() for line in lines if names.search(line)]
    assert exported == f"from {view.__module__} import {view.__name__} as {view.__name__}"
    assert len(made) == hasattr(view, "of")
    assert all(re.fullmatch(rf"\w+ = Made\({view.__name__}\.of\)", line) for line in made)


def test_every_module_has_its_view():
    assert len(VIEWS) >= 3
    assert {v.kind for v in VIEWS} == {p.stem for p in (ROOT / "widgets/views").glob("*.js")}


@pytest.mark.parametrize("view", VIEWS, ids=lambda view: view.kind)
def test_every_host_can_load_a_module(view):
    """What anywidget asks for, so that VS Code and Colab show it too: one module with a default export, that
    fetches and evaluates nothing."""
    board = view.kind == "board"
    module = assets.board("board", {"map": None}) if board else assets.module(view.kind)
    script = re.sub(r"/\*.*?\*/|^\s*//[^\n]*", "", module, flags=re.S | re.M)
    assert re.findall(r"^export .*$", script, re.M) == [script.strip().splitlines()[-1]]
    assert script.strip().splitlines()[-1].startswith("export default { render: ")
    # a method may be called fetch, as some are
    fetched = r"\b(?:window|globalThis)\.fetch\b|(?<![.\w])fetch\((?!\w+\) \{)"
    asked = r"\bimport\b|XMLHttpRequest|WebSocket|EventSource|sendBeacon|\beval\(|\bFunction\("
    assert re.findall(fetched, script) == []
    assert re.findall(asked, script) == []
    assert set(re.findall(r"https?://[^\s\"`]+", script)) <= {"http://www.w3.org/2000/svg"}
    assert re.findall(r"\.(?:innerHTML|outerHTML|insertAdjacentHTML)\b|document\.write", script) == []
    assert re.findall(r"@import|url\(", assets.css({view.kind: None})) == []


def test_a_view_may_come_from_elsewhere(tmp_path):
    selection = Selection()
    view = levels_view(tmp_path)(np.linspace(0, 1, 5), selection=selection)
    other = CardView(3, questions={"card": card}, selection=selection)
    selection.latents = (1, 3)
    assert (view.latent, view.latents, repr(view)) == (3, (1, 3), "1: 25.0%\n3: 75.0%")
    assert 'views/levels.js"] = (() => {' in view._esm
    assert set(view.opening) == {"density"}
    view.set_state({"latent": 1})
    assert other.latent == 1
    text = view.export(tmp_path / "levels.html").read_text()
    data = json.loads(re.search(r'id="saelab-data">(.*?)</script>', text, re.S)[1])
    (chosen,) = data["selections"]
    assert chosen == {
        "sae": None,
        "latent": 1,
        "row": None,
        "document": None,
        "latents": [1, 3],
        "list": None,
    }
    (entry,) = data["views"]
    header, buffers = chunks(data["shelves"][entry["shelves"]["density"]])["density"]
    assert header["unit"] == "share of rows"
    np.testing.assert_array_equal(decoded(header, buffers)["density"], np.linspace(0, 1, 5, dtype=np.float32))


def test_its_module_is_read_anew(tmp_path):
    """Who writes a view changes its file and runs the cell again."""
    path = tmp_path / "mine.js"
    mine = type("Mine", (levels_view(tmp_path),), {"kind": "mine"})
    with pytest.raises(ConfigError, match=f"no {path}"):
        mine([1.0])
    for word in ("first", "second"):
        path.write_text(f'export const render = () => "{word}";\n')
        assert word in mine([1.0])._esm
    path.write_text('import { x } from "./helper.js";\nexport const render = () => x;\n')
    with pytest.raises(ConfigError, match="at hand"):
        assets.module("mine", tmp_path)
    path.write_text("export const draw = () => 1;\n")
    with pytest.raises(ConfigError, match="must export render"):
        mine([1.0])

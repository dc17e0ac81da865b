"""The map's Python side: what goes over the wire is what the map holds, it follows what is chosen, and its
form and pages are bounded.
"""

from __future__ import annotations

import json
import re
import sys
import time
import xml.etree.ElementTree as ElementTree
from dataclasses import replace
from html.parser import HTMLParser
from urllib.parse import unquote

import numpy as np
import pytest
from shown import chunks, decoded, table

from saelab.analysis.maps.faithful import Faith, Share
from saelab.analysis.maps.looking import COLUMNS, LatentColumn, Near
from saelab.analysis.maps.results import CONTROLS, LatentMap
from saelab.types import ConfigError, JobError, MissingDependency
from saelab.widgets import BoardView, DensitiesView, MapView, Selection, still, still_map
from saelab.widgets.map import PAGE_ABOUT, pack_points
from saelab.widgets.still_map import NOWHERE

HOSTILE = "<img src=x onerror='window.hacked=1'>\u202e</script>\ud800]]>"


def planted(n=200, method="pca", names=("the", HOSTILE), seed=0) -> LatentMap:
    """Two groups, some latents of neither, some dead, some without a place."""
    rng = np.random.default_rng(seed)
    cluster = (np.arange(n) % (len(names) + 1) - 1).astype(np.int32)
    place = np.stack([3.0 * cluster, cluster % 2], 1) + 0.3 * rng.standard_normal((n, 2))
    place = place.astype(np.float32)
    nowhere = np.arange(n) % 17 == 5
    place[nowhere] = np.nan
    cluster[nowhere] = -1
    share = Faith(*[Share(0.5, 0.4, 0.6)] * 3)
    faith = dict.fromkeys(dict.fromkeys([method, *CONTROLS]), share)
    return LatentMap(
        "decoder", method, place[:, 0], place[:, 1], np.arange(n) % 10 == 3, cluster, names, faith
    )


def questions(made: LatentMap, **more):
    own = table(len(made.x))
    return {
        "map": lambda by, method: made,
        "table": lambda: own,
        "near": lambda latents, by: [Near(j, [((j + 1) % len(made.x), 0.75)], 0.2) for j in latents],
        "columns": lambda: COLUMNS,
        "column": lambda sql: LatentColumn(sql, np.arange(len(made.x), dtype=np.float32)),
        "find": lambda text: [3, 1],
        **more,
    }


def test_places_come_back_as_they_went():
    made = planted()
    header, buffers = pack_points(made).encoded()
    assert sum(map(len, buffers)) == 7 * len(made.x)
    fields = decoded(header, buffers)
    there = np.isfinite(made.x)
    for axis in ("x", "y"):
        np.testing.assert_array_equal(fields[axis] == NOWHERE, ~there)
    # one scale for both axes, so that what is near stays so
    step = max(np.ptp(made.x[there]), np.ptp(made.y[there])) / (NOWHERE - 1)
    for axis, values in (("x", made.x), ("y", made.y)):
        back = fields[axis][there] * step
        np.testing.assert_allclose(back - back[0], values[there] - values[there][0], atol=1.01 * step)
    np.testing.assert_array_equal(fields["dead"], made.dead)
    np.testing.assert_array_equal(fields["cluster"].astype(np.int16), made.cluster)
    assert [row[:2] for row in header["clusters"]] == [["the", 63], [HOSTILE.replace("\ud800", "?"), 62]]
    for (_, _, x, y), number in zip(header["clusters"], range(2), strict=True):
        own = made.cluster == number
        assert (x, y) == (np.median(fields["x"][own]), np.median(fields["y"][own]))
    assert header["verdict"] == made.verdict
    assert len(header["controls"]) == 6
    assert json.loads(json.dumps(header, allow_nan=False)) == header


def test_a_map_of_one_place_and_one_without_clusters():
    made = planted(names=())
    made.x[:], made.y[:] = 1.0, 1.0
    fields = decoded(*pack_points(made).encoded())
    assert (fields["x"] == fields["x"][0]).all()
    assert pack_points(made).header["clusters"] == []
    assert "<svg" in still_map.picture(made)


def test_it_follows_what_is_chosen_and_is_chosen_from():
    selection = Selection()
    view = MapView(questions(planted()), selection=selection)
    other = MapView(questions(planted()), selection=Selection())
    selection.latents = (3, 7)
    assert view.selected == (3, 7)
    view.set_state({"latents": [5], "latent": 9})  # a lasso and a click in the browser
    assert (selection.latents, selection.latent) == ((5,), 9)
    assert other.latent is None
    assert other.selected == ()
    view.close()


def test_questions_about_latents():
    view = MapView(questions(planted()))
    view.labels = {"8": {"label": "x", "name": HOSTILE}}
    header = view.answers()["about"](latent=7, by="decoder").header
    assert header["name"] == "n7"
    assert header["neighbours"] == [[8, 0.75, HOSTILE.replace("\ud800", "?")]]
    assert header["control"] == 0.2
    assert header["count"] == table(200).count[7]
    find = lambda text: decoded(*view.answers()["find"](text=text).encoded())["latents"].tolist()  # noqa: E731
    assert find("#19") == [19, *range(190, 200)]
    assert find("N19") == [1, 3, 19, *range(190, 200)]  # names, and what fires on it
    assert find(" ") == []
    none = MapView({"map": lambda by, method: planted()})
    assert none.answers()["about"](latent=7, by="decoder").header == {"latent": 7, "name": "", "tokens": []}
    with pytest.raises(ConfigError, match="method must be one of"):
        none.answers()["points"](by="decoder", method="isomap")
    with pytest.raises(ConfigError, match="by must be one of"):
        MapView(questions(planted()), by="nearness")


class Job:
    """A map in the making that ends when it is told to."""

    def __init__(self):
        self.done, self.error, self.cancelled = False, None, 0
        self.progress = ("umap", 0.25, 3.0)

    def result(self):
        if self.error:
            raise self.error
        return planted(method="umap")

    def cancel(self):
        self.cancelled += 1
        self.done = True


def test_pca_is_shown_until_a_slower_method_is_there():
    jobs = []

    def start(by, method):
        jobs.append(Job())
        return jobs[-1]

    view = MapView(questions(planted(), start_map=start), method="umap")
    answers = view.answers()
    assert (view.map.method, len(jobs)) == ("pca", 1)
    header = answers["points"](by="decoder", method="umap").header
    assert (header["method"], header["job"]["what"], header["job"]["share"]) == ("pca", "umap", 0.25)
    assert answers["progress"](by="decoder", method="umap").header["job"]["done"] is False
    jobs[0].done = True
    header = answers["points"](by="decoder", method="umap").header
    assert (header["method"], header["job"], view.map.method) == ("umap", None, "umap")
    # one that is cancelled, and one that fails: the next question begins anew
    assert answers["points"](by="decoder", method="tsne").header["job"] is not None
    answers["cancel"](by="decoder", method="tsne")
    assert (jobs[1].cancelled, view.method, view.map.method) == (1, "pca", "pca")
    answers["points"](by="decoder", method="tsne")
    jobs[2].done, jobs[2].error = True, JobError("It was lost. Got nothing. Start it again.")
    assert "lost" in answers["progress"](by="decoder", method="tsne").header["job"]["error"]
    with pytest.raises(JobError, match="lost"):
        answers["points"](by="decoder", method="tsne")
    assert answers["points"](by="decoder", method="tsne").header["job"]["error"] == ""
    assert len(jobs) == 4


def test_the_form_without_a_kernel_is_bounded_and_inert():
    rng = np.random.default_rng(0)
    names = tuple(f"{HOSTILE} {i}" for i in range(300))
    made = planted(150_000, names=names)
    made.x[:], made.y[:] = rng.standard_normal((2, 150_000))
    view = MapView(questions(made), latents=(3, 5, 149_999))
    form = view._repr_mimebundle_()
    data = form[0] if isinstance(form, tuple) else form
    shown = data["text/html"]
    assert "<img alt=" in shown  # not replaced by its words
    assert len(shown.encode()) <= still.MOST_BYTES
    seen = []
    parser = HTMLParser()
    parser.handle_starttag = lambda tag, attrs: seen.append((tag, {name for name, _ in attrs}))
    parser.feed(shown)
    assert {tag for tag, _ in seen} <= {"div", "img", "ol", "li", "b", "small"}
    assert set.union(*(names for _, names in seen)) <= {"style", "alt", "src"}
    source = re.search(r'src="data:image/svg\+xml,([^"]*)"', shown)[1]
    tree = ElementTree.fromstring(unquote(source))
    assert {each.tag.rpartition("}")[2] for each in tree.iter()} == {"svg", "rect", "image", "g", "text"}
    assert made.verdict in shown
    assert data["text/plain"] == str(made)


def test_a_figure_for_paper(tmp_path):
    made = planted(names=("the", HOSTILE, *(f"name {i}" for i in range(30))))
    made.x[:] /= 8  # so near that there is no room for all
    view = MapView(questions(made))
    path = view.export(tmp_path / "map.svg")
    tree = ElementTree.fromstring(path.read_text())
    texts = [each for each in tree.iter() if each.tag.endswith("text")]
    assert texts[0].text == "the"
    assert 3 < len(texts) < 32
    boxes = [(float(e.get("x")), float(e.get("y")), 6.6 * len(e.text)) for e in texts]
    for i, (x, y, wide) in enumerate(boxes):
        assert 0 <= x <= x + wide <= 660
        assert all(abs(y - b) >= 15 or x >= a + w or x + wide <= a for a, b, w in boxes[:i])
    assert view.figure().data[0].name == "no cluster"


def test_a_picture_in_pixels(tmp_path, monkeypatch):
    image = pytest.importorskip("PIL.Image")
    pytest.importorskip("vl_convert")
    made = planted(names=("the", HOSTILE))
    shown = np.asarray(image.open(MapView(questions(made)).export(tmp_path / "map.PNG")).convert("L"), int)
    assert shown.shape == (1440, 1920)
    bare = MapView(questions(replace(made, names=("", ""))))
    without = np.asarray(image.open(bare.export(tmp_path / "bare.png")).convert("L"), int)
    # the points are there, and so are the names
    assert 0.001 < (without < 220).mean() < 0.5
    assert ((without - shown) > 100).sum() > 300
    with pytest.raises(ConfigError, match=r"which has words and tables\. Export x\.html"):
        DensitiesView(table(5)).export(tmp_path / "x.png")
    with pytest.raises(ConfigError, match="Got BoardView"):
        BoardView([bare]).export(tmp_path / "x.svg")
    monkeypatch.setitem(sys.modules, "vl_convert", None)
    with pytest.raises(MissingDependency, match=r"or write x\.svg"):
        bare.export(tmp_path / "y.png")


def test_a_page_holds_what_it_says(tmp_path):
    n = PAGE_ABOUT + 500
    view = MapView(questions(planted(n)), colour="max / mean", latent=17)
    path = view.export(tmp_path / "map.html")
    assert path.stat().st_size < 80 * n + 4_000_000
    data = json.loads(re.search(r'id="saelab-data">(.*?)</script>', path.read_text(), re.S)[1])
    (entry,) = data["views"]
    held = {question: chunks(data["shelves"][number]) for question, number in entry["shelves"].items()}
    assert set(held["column"]) == {f'column?sql="{sql}"' for sql in ["max / mean", *COLUMNS]}
    fields = decoded(*held["points"]['points?by="decoder"&method="pca"'])
    np.testing.assert_array_equal(fields["x"], still_map.quantised(view.map.x, view.map.y)[0])
    assert len(held["about"]) in (PAGE_ABOUT, PAGE_ABOUT + 1)
    assert 'about?by="decoder"&latent=17' in held["about"]
    count, placed = table(n).count, set(view.map.placed.tolist())
    told = {int(re.search(r"latent=(\d+)", key)[1]) for key in held["about"]} - {17}
    left = placed - told - {17}
    assert min(count[list(told)]) >= max(count[list(left)])  # the most frequent ones


def test_a_lab_makes_maps_of_its_own(small_lab):
    view = small_lab.map(colour="density")
    before = time.perf_counter()
    assert small_lab.map().text() == view.text()
    assert time.perf_counter() - before < 5
    header = view.answers()["about"](latent=int(view.map.placed[0]), by="decoder").header
    assert len(header["neighbours"]) == 8
    assert header["tokens"] or header["count"] == 0
    column = decoded(*view.answers()["column"](sql="density").encoded())
    np.testing.assert_allclose(column["values"], small_lab.store.latents()["density"], rtol=1e-6)
    token = small_lab.store.query("select name from vocabulary order by count desc limit 1")["name"][0]
    found = decoded(*view.answers()["find"](text=token).encoded())["latents"]
    assert set(small_lab.store.search(value=token, n=50)["latent"]) <= set(found.tolist())
    small_lab.selection.latent = 3
    assert view.latent == 3
    view.answers()["points"](by="tokens", method="pca")
    assert view.map.by == "tokens"
    assert small_lab.map("decoder").map.by == "decoder"

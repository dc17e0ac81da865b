"""What a map of 100,000 and of 1,000,000 latents costs in a real JupyterLab, beside other scatter plots.

benchmarks/peers/install_maps.sh                 # once, for the peers; without it only saelab is measured
python benchmarks/maps.py [--sizes 100000 1000000] [--rounds 2] [--record]

Ours is `lab.map()` of an indexed SAE whose map is kept beside its store (40 planted groups), by the processor
and by WebGL2; theirs are widgets over the same places and groups. All take turns, each in a page of its own.
First paint: from Ctrl+Enter in the cell until a canvas of its output has 300 of 200 x 120 pixels that are not
of its commonest colour. Frame: from an event of the wheel to the second animation frame after it, with a
pixel of the canvas read back, so that what was drawn is there; two frames of the browser are 33 ms. Bytes:
what came over the web sockets meanwhile. Browsers without a graphics card draw WebGL in software, and have no
WebGPU, without which embedding-atlas draws nothing.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import sys
import tempfile
from importlib.metadata import version
from pathlib import Path
from typing import Any

import nbformat
import numpy as np
from playwright.sync_api import TimeoutError as Late
from playwright.sync_api import sync_playwright

import saelab
from saelab.analysis.maps import keeping
from saelab.analysis.maps.faithful import Faith, Share
from saelab.analysis.maps.results import CONTROLS, LatentMap

sys.path.insert(0, str(Path(__file__).parents[1] / "tests"))
from real_lab import CHROMIUM, FLAGS, open_notebook, running_lab
from results import ROOT, record

PEERS = ROOT / ".venv-maps" / "bin" / "python"
HOOK = saelab.embedded.STORE_HOOK
OURS = """
import saelab
lab = saelab.Lab("{model}", "{folder}/sae-{n}", "{folder}/store-{n}", preload=False)
---
lab.map(engine="{engine}")
"""
DATA = """
import numpy as np
x, y, group = (np.load("{folder}/{{}}-{n}.npy".format(name)) for name in ("x", "y", "group"))
"""
CELLS = {
    "lab.map, processor": ("python3", OURS.replace("{engine}", "canvas")),
    "lab.map, WebGL2": ("python3", OURS.replace("{engine}", "webgl")),
    "jupyter-scatter": (
        "peers",
        DATA
        + """
import jscatter, pandas as pd
frame = pd.DataFrame(dict(x=x, y=y, group=pd.Categorical(group.astype(str))))
---
jscatter.Scatter(data=frame, x="x", y="y", color_by="group", height=500).show()
""",
    ),
    "embedding-atlas": (
        "peers",
        DATA
        + """
import pandas as pd
from embedding_atlas.widget import EmbeddingAtlasWidget
frame = pd.DataFrame(dict(x=x, y=y, group=group.astype(str)))
---
EmbeddingAtlasWidget(frame, x="x", y="y", labels="disabled")
""",
    ),
    "plotly Scattergl": (
        "peers",
        DATA
        + """
import plotly.graph_objects as go
---
figure = go.FigureWidget(
    go.Scattergl(x=x, y=y, mode="markers", marker=dict(color=group, size=3)), layout=dict(height=500)
)
figure._config = dict(scrollZoom=True)
figure
""",
    ),
}
NEEDS_GPU = ("embedding-atlas",)
"""They draw by WebGPU alone, which browsers without a graphics card have not."""
WATCH = """
window.bytes = 0;
const Socket = window.WebSocket;
window.WebSocket = class extends Socket {
  constructor(...args) {
    super(...args);
    this.addEventListener('message', (e) => {
      window.bytes += typeof e.data === 'string' ? e.data.length : (e.data.byteLength ?? e.data.size);
    });
  }
};
const context = HTMLCanvasElement.prototype.getContext;
HTMLCanvasElement.prototype.getContext = function (kind, options) {
  if (/webgl/.test(kind)) return context.call(this, kind, {...options, preserveDrawingBuffer: true});
  return context.call(this, kind, options);
};
const small = document.createElement('canvas');
[small.width, small.height] = [200, 120];
const pixels = context.call(small, '2d', {willReadFrequently: true});
window.canvases = (root) => [...root.querySelectorAll('*')].flatMap((e) => [
  ...(e.tagName === 'CANVAS' ? [e] : []), ...(e.shadowRoot ? window.canvases(e.shadowRoot) : [])]);
window.seen = (canvas) => {
  if (!canvas.width || !canvas.height || !canvas.clientWidth) return [0, 0];
  pixels.clearRect(0, 0, 200, 120);
  pixels.drawImage(canvas, 0, 0, 200, 120);
  const values = new Uint32Array(pixels.getImageData(0, 0, 200, 120).data.buffer);
  const counts = new Map();
  let sum = 0;
  values.forEach((v, i) => { counts.set(v, (counts.get(v) ?? 0) + 1); sum = (sum * 31 + v) >>> 0; });
  return [values.length - Math.max(...counts.values()), sum];
};
window.addEventListener('keydown', (e) => {
  if (!e.ctrlKey || e.key !== 'Enter') return;
  [window.start, window.before, window.painted] = [performance.now(), window.bytes, null];
  const clock = setInterval(() => {
    const outputs = [...document.querySelectorAll('.jp-OutputArea-output')];
    const large = (c) => c.clientWidth * c.clientHeight > 60000;
    const found = outputs.flatMap(window.canvases).find((c) => large(c) && window.seen(c)[0] > 300);
    if (!found) return;
    clearInterval(clock);
    window.canvas = found;
    window.painted = performance.now() - window.start;
  }, 15);
}, true);
"""
FRAMES = """
async (n) => {
  const frame = () => new Promise(requestAnimationFrame);
  const own = window.canvas.closest('.sl-map-frame');
  own?.focus();
  // of plotly a layer over the canvas takes the events
  const target = document.querySelector('.nsewdrag') ?? own ?? window.canvas;
  const box = window.canvas.getBoundingClientRect();
  const at = {clientX: box.x + box.width / 2, clientY: box.y + box.height / 2,
    bubbles: true, cancelable: true};
  const small = document.createElement('canvas');
  const pixel = small.getContext('2d', {willReadFrequently: true});
  const before = window.seen(window.canvas)[1];
  const took = [];
  let moved = 0;
  for (let i = 0; i < n; i++) {
    const start = performance.now();
    target.dispatchEvent(new WheelEvent('wheel', {...at, deltaY: i < n / 2 ? -60 : 60}));
    await frame();
    await frame();
    pixel.drawImage(window.canvas, 0, 0, 1, 1);
    pixel.getImageData(0, 0, 1, 1);
    took.push(performance.now() - start);
    if (i === Math.floor(n / 2) - 1) moved = window.seen(window.canvas)[1] !== before;
  }
  return {took, moved};
}
"""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--sizes", type=int, nargs="+", default=[100_000, 1_000_000])
    parser.add_argument("--rounds", type=int, default=2)
    parser.add_argument("--only", nargs="+", default=list(CELLS), help="which of these")
    parser.add_argument(
        "--folder", type=Path, help="where the SAEs and their stores are kept for the next run"
    )
    parser.add_argument("--timeout", type=float, default=45, help="seconds for a first paint")
    parser.add_argument("--record", action="store_true", help="keep as benchmarks/results/maps-N.json")
    options = parser.parse_args()
    if CHROMIUM is None:
        sys.exit("needs chromium: tools/system_packages.sh installs it")
    names = [name for name in options.only if CELLS[name][0] == "python3" or PEERS.is_file()]
    with tempfile.TemporaryDirectory() as temporary, tempfile.TemporaryDirectory() as home:
        folder = options.folder or Path(temporary)
        for n in options.sizes:
            prepare(folder, n)
            for name in names:
                notebook(folder, name, n)
        kernel(Path(home))
        with (
            running_lab(folder, Path(home)) as jupyter,
            sync_playwright() as playwright,
            playwright.chromium.launch(executable_path=CHROMIUM, args=FLAGS) as browser,
        ):
            for n in options.sizes:
                turns: dict[str, list[dict[str, Any]]] = {name: [] for name in names}
                for i in range(options.rounds):
                    for name in names:
                        if name in NEEDS_GPU and i:
                            continue  # it drew nothing, and would not now
                        turns[name].append(turn(browser, jupyter, name, n, options.timeout, first=not i))
                        print(n, name, turns[name][-1], flush=True)
                for name in names:
                    jupyter.kill_kernel(f"{_file(name)}-{n}.ipynb")
                rows = [row(n, name, turns[name]) for name in names]
                print(json.dumps(rows, indent=1))
                if options.record:
                    keep(rows, n, options.rounds)


def keep(rows: list[dict[str, Any]], n: int, rounds: int) -> None:
    """As benchmarks/results/maps-N.json."""
    libraries = {name: version(name) for name in ("jupyterlab", "anywidget", "playwright")}
    pins = (ROOT / "benchmarks/peers/install_maps.sh").read_text().split()
    peers = dict(pin.split("==") for pin in pins if "==" in pin)
    record(f"maps-{n}", rows, rounds=rounds, versions={**peers, **libraries}, browser=browser_version())


def prepare(folder: Path, n: int) -> None:
    """An untrained SAE, its store, a planted map that is kept beside it, and its places for the others."""
    store_folder = folder / f"store-{n}"
    if not store_folder.exists():
        subject = saelab.load_subject(str(saelab.embedded.model_folder()))
        config = saelab.recipe("topk", d_in=subject.width(HOOK), d_sae=n, k=16, hook=HOOK)
        sae = saelab.SAE.create(config, seed=0)
        sae.save(folder / f"sae-{n}")
        corpus = saelab.corpora.world(seed=5, n_documents=200)
        saelab.index(subject, sae, corpus, store_folder, max_rows=2_000, progress=False)
    store = saelab.FeatureStore.open(store_folder)
    rng = np.random.default_rng(0)
    group = rng.integers(0, 40, n).astype(np.int32)
    middles, widths = 4 * rng.standard_normal((40, 2)), rng.uniform(0.1, 0.6, (40, 1))
    place = (middles[group] + widths[group] * rng.standard_normal((n, 2))).astype(np.float32)
    faith = dict.fromkeys(CONTROLS, Faith(*[Share(0.5, 0.4, 0.6)] * 3))
    names = tuple(f"group {i}" for i in range(40))
    dead = store.latents()["count"].to_numpy() == 0
    made = LatentMap("decoder", "pca", place[:, 0], place[:, 1], dead, group, names, faith)
    keeping.keep(store, {"by": "decoder", "method": "pca", "seed": 0, "n_neighbors": 15}, made)
    for name, values in (("x", place[:, 0]), ("y", place[:, 1]), ("group", group)):
        np.save(folder / f"{name}-{n}.npy", values)


def notebook(folder: Path, name: str, n: int) -> None:
    spec, cells = CELLS[name]
    said = cells.replace("{model}", str(saelab.embedded.model_folder())).replace("{folder}", str(folder))
    sources = said.replace("{n}", str(n)).replace("{{}}", "{}").split("---")
    made = nbformat.v4.new_notebook(cells=[nbformat.v4.new_code_cell(each.strip()) for each in sources])
    made.metadata["kernelspec"] = {"name": spec, "display_name": spec, "language": "python"}
    nbformat.write(made, folder / f"{_file(name)}-{n}.ipynb")


def kernel(home: Path) -> None:
    """The kernel of the other libraries."""
    folder = home / "data" / "kernels" / "peers"
    folder.mkdir(parents=True)
    command = [str(PEERS), "-m", "ipykernel_launcher", "-f", "{connection_file}"]
    said = {"argv": command, "display_name": "peers", "language": "python", "env": {"PYTHONPATH": ""}}
    (folder / "kernel.json").write_text(json.dumps(said))


def turn(browser: Any, jupyter: Any, name: str, n: int, timeout: float, *, first: bool) -> dict[str, Any]:
    """One look: seconds of the first paint, bytes, milliseconds of frames."""
    page = browser.new_context(viewport={"width": 1300, "height": 1000}).new_page()
    page.add_init_script(WATCH)
    page.set_default_timeout(1000 * timeout)
    try:
        open_notebook(page, jupyter, f"{_file(name)}-{n}.ipynb")
        idle = '.jp-Notebook-ExecutionIndicator[data-status="idle"]'
        cells = page.locator(".jp-CodeCell .cm-content")
        if first:
            set_up(page, cells.nth(0))
            page.wait_for_selector(idle)
        page.wait_for_timeout(500)
        cells.nth(1).click()
        page.keyboard.press("Control+Enter")
        page.wait_for_function("window.painted !== null && window.painted !== undefined")
        painted = page.evaluate("window.painted")
        page.wait_for_selector(idle)
        page.wait_for_timeout(1500)
        bytes_ = page.evaluate("window.bytes - window.before")
        frames = page.evaluate(FRAMES, 24)
        return {"paint": painted / 1000, "bytes": bytes_, "frame": statistics.median(frames["took"]),
                "moved": frames["moved"]}  # fmt: skip
    except Late:
        return {"paint": None, "bytes": None, "frame": None, "moved": False}
    finally:
        page.context.close()


def set_up(page: Any, cell: Any) -> None:
    """Run the first cell; a lab that is just starting may let a key pass."""
    for _ in range(6):
        cell.click()
        page.keyboard.press("Control+Enter")
        try:
            page.wait_for_selector(".jp-CodeCell .jp-InputPrompt:has-text('[1]')", timeout=10_000)
        except Late:
            continue
        return


def row(n: int, name: str, turns: list[dict[str, Any]]) -> dict[str, Any]:
    """Medians of the rounds, with the range of the first paint."""
    done = [each for each in turns if each["paint"] is not None]
    if not done:
        return {"points": n, "widget": name, "first paint s": "draws nothing"}
    paints = [each["paint"] for each in done]
    middle = {key: statistics.median(each[key] for each in done) for key in ("paint", "bytes", "frame")}
    return {
        "points": n, "widget": name, "first paint s": round(middle["paint"], 2),
        "range s": f"{min(paints):.2f} to {max(paints):.2f}", "frame ms": round(middle["frame"], 1),
        "moves by the wheel": "yes" if all(each["moved"] for each in done) else "no",
        "MB": round(middle["bytes"] / 1e6, 2), "bytes a point": round(middle["bytes"] / n, 1),
    }  # fmt: skip


def browser_version() -> str:
    return os.popen(f"{CHROMIUM} --version").read().strip()


def _file(name: str) -> str:
    return name.replace(" ", "-").replace(",", "").replace(".", "-")


if __name__ == "__main__":
    main()

"""What a harvest of patches costs beside the forward pass that it cannot avoid, and an index in memory.

python benchmarks/vision.py [--size 384 --blocks 12] [--images 32] [--rounds 5]
python benchmarks/vision.py --index 10000
python benchmarks/vision.py --paint [--rounds 5]

The harvest reads a folder of JPEG files of 256 x 256 through a ViT of random weights (224 x 224, 196 patches,
one class token) and keeps the patches of a block in the middle; files are decoded by threads. The forward
pass reads the same pixels, decoded, resized and batched beforehand, and stops after the same block. Both take
turns on one thread; "whole" is CPU time of the process, decoding threads included, "main" that of the thread
that runs the model: what is left where other processors decode. Figures are medians over rounds of the
quotient of two neighbouring turns; 1 is the pass itself, and more is slower.

--paint: from opening an exported page with one card of the embedded vision transformer until every picture of
it is there, in a real browser, and the part of that after the page was read; and the page's bytes. Clocks are
of the wall: a busy machine makes them longer.
--index: by how much the memory of a process rises while it indexes so many images, beside a tenth of them.
"""

from __future__ import annotations

import argparse
import io
import json
import resource
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
import transformers
from PIL import Image
from results import record

import saelab
from saelab.subjects import VisionModel

BATCH = 8


def main() -> None:
    parser = argparse.ArgumentParser(description="What reading images costs")
    parser.add_argument("--size", type=int, default=384, help="width of the ViT")
    parser.add_argument("--blocks", type=int, default=12)
    parser.add_argument("--images", type=int, default=32)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--index", type=int, help="images of the index whose memory is measured")
    parser.add_argument("--paint", action="store_true")
    parser.add_argument("--alone", type=int, help=argparse.SUPPRESS)
    options = parser.parse_args()
    torch.set_num_threads(1)
    if options.alone:  # a process that measures its own memory
        print(json.dumps(indexed(options.alone)))
    elif options.index:
        rows = [alone(n) for n in (options.index // 10, options.index)]
        print(record("vision-index", rows, patches=196, d_sae=512, k=8))
    elif options.paint:
        print(record("vision-paint", [painted(options.rounds)]))
    else:
        print(record("vision", [harvested(options)], size=options.size, blocks=options.blocks))


def subject(size: int, blocks: int) -> VisionModel:
    """A ViT of random weights over 14 x 14 patches."""
    torch.manual_seed(0)
    config = transformers.ViTConfig(
        hidden_size=size, num_hidden_layers=blocks, num_attention_heads=max(1, size // 64),
        intermediate_size=4 * size, image_size=224, patch_size=16,
    )  # fmt: skip
    processor = transformers.ViTImageProcessorPil(size={"height": 224, "width": 224})
    return VisionModel(transformers.ViTModel(config), processor, rows="patches")


def photograph(seed: int) -> bytes:
    """A JPEG of 256 x 256 of some detail, about 15 kB."""
    rng = np.random.default_rng(seed)
    coarse = Image.fromarray(rng.integers(0, 255, (32, 32, 3), dtype=np.uint8)).resize((256, 256))
    out = io.BytesIO()
    coarse.save(out, "JPEG", quality=85)
    return out.getvalue()


def harvested(options: argparse.Namespace) -> dict[str, Any]:
    """Quotients of a harvest and its stopped forward pass."""
    model = subject(options.size, options.blocks)
    hook = f"blocks.{options.blocks // 2}.hook_resid_post"
    with tempfile.TemporaryDirectory() as folder:
        place = Path(folder) / "pictures"
        place.mkdir()
        for i in range(options.images):
            (place / f"{i}.jpg").write_bytes(photograph(i))
        corpus = saelab.corpora.images(place)
        samples = [d.sample for d in corpus]
        inputs = [model.prepare(samples[i : i + BATCH]) for i in range(0, len(samples), BATCH)]
        model.run(inputs[0], read=hook, output=False)

        def forward() -> None:
            for each in inputs:
                model.run(each, read=hook, output=False)

        def harvest() -> None:
            out = Path(folder) / "acts"
            saelab.harvest(
                model, corpus, [hook], out, batch_size=BATCH, overwrite=True, progress=False,
            )  # fmt: skip

        harvest()
        turns = [(timed(harvest), timed(forward)) for _ in range(options.rounds)]
    whole, main = ([h[i] / f[i] for h, f in turns] for i in (0, 1))
    return {
        "images": options.images,
        "forward ms an image": round(1e3 * statistics.median(f[0] for _, f in turns) / options.images, 2),
        "x forward, whole": round(statistics.median(whole), 3),
        "x forward, main": round(statistics.median(main), 3),
        "lowest main": round(min(main), 3),
        "highest main": round(max(main), 3),
    }


WATCH = """
const look = () => {
  const pictures = [...document.querySelectorAll(".sl-card .sl-tile img")];
  if (pictures.length && pictures.every((i) => i.complete)) window.painted = performance.now();
  else requestAnimationFrame(look);
};
requestAnimationFrame(look);
"""


def painted(rounds: int) -> dict[str, Any]:
    """Milliseconds until a card of pictures is there."""
    from playwright.sync_api import sync_playwright

    sys.path.insert(0, str(Path(__file__).parents[1] / "tests"))
    from real_lab import CHROMIUM, FLAGS

    lab = saelab.Lab.embedded_vision()
    latent = int(lab.store.latents()["count"].argmax())
    with tempfile.TemporaryDirectory() as folder, sync_playwright() as playwright:
        path = Path(folder) / "card.html"
        lab.feature(latent).export(path)
        browser = playwright.chromium.launch(executable_path=CHROMIUM, args=FLAGS)
        found, read, tiles = [], [], 0
        for _ in range(rounds):
            page = browser.new_page()
            page.add_init_script(WATCH)
            page.goto(path.as_uri())
            page.wait_for_function("() => window.painted")
            found.append(page.evaluate("window.painted"))
            read.append(page.evaluate("performance.getEntriesByType('navigation')[0].domInteractive"))
            tiles = page.locator(".sl-tile img").count()
            page.close()
        browser.close()
        size = path.stat().st_size
    after = statistics.median(f - r for f, r in zip(found, read, strict=True))
    return {
        "pictures": tiles, "page kB": round(size / 1e3), "median ms": round(statistics.median(found)),
        "slowest ms": round(max(found)),
        "after the page is read, ms": round(after),
    }  # fmt: skip


def timed(do: Callable[[], None]) -> tuple[float, float]:
    """Seconds of the process, and of this thread."""
    before = time.process_time(), time.thread_time()
    do()
    return time.process_time() - before[0], time.thread_time() - before[1]


def alone(n: int) -> dict[str, Any]:
    """What a process of its own tells."""
    command = [sys.executable, __file__, "--alone", str(n)]
    told = subprocess.run(command, check=True, capture_output=True, text=True).stdout
    return json.loads(told.splitlines()[-1])


def indexed(n: int) -> dict[str, Any]:
    """Memory and time of an index of n images."""
    model = subject(64, 2)
    hook = "blocks.0.hook_resid_post"
    config = saelab.recipe("topk", d_in=64, d_sae=512, k=8, hook=hook)
    sae = saelab.SAE.create(config, seed=0, rows=torch.randn(1_024, 64))
    jpegs = [photograph(i) for i in range(64)]

    class Files:
        def __len__(self) -> int:
            return n

        def __getitem__(self, i: int) -> np.ndarray:
            return np.asarray(Image.open(io.BytesIO(jpegs[i % 64])))

    with tempfile.TemporaryDirectory() as folder:
        saelab.index(model, sae, saelab.corpora.images(Files()).take(16),
                     Path(folder) / "warm", progress=False)  # fmt: skip
        before, began = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss, time.process_time()
        store = saelab.index(model, sae, saelab.corpora.images(Files()), Path(folder) / "s", progress=False)
        seconds = time.process_time() - began
        size = sum(f.stat().st_size for f in store.folder.iterdir())
    risen = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before
    return {
        "images": n, "rows": store.n_rows, "memory risen, MB": round(risen / 1024),
        "store, MB": round(size / 1e6, 1), "CPU s": round(seconds, 1),
    }  # fmt: skip


if __name__ == "__main__":
    main()

"""What the path costs on trained models: loading a GGUF file, harvesting, training, and how good the SAE is.

python benchmarks/real.py [--out real.json] [--rows 20000] [--d-sae 4096] [--steps 400] [--threads 2]

SmolLM2-135M-Instruct out of its GGUF file at `blocks.12.hook_resid_post`, EfficientNet-Lite0 at `_blocks.10`:
`make real` fetches them. First load: into an empty cache of its own; cached: a new process. FVU and loss
recovered are on texts or images that were not trained on, beside an untrained SAE.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import torch

import saelab

sys.path.insert(0, str(Path(__file__).parents[1] / "tests"))
import real_models

HOOK, PIXELS = "blocks.12.hook_resid_post", "_blocks.10"
LOAD = """
import json, resource, sys, time
import saelab, torch, transformers  # what every program pays
t = time.perf_counter()
subject = saelab.load_subject(sys.argv[1], progress=False)
took = time.perf_counter() - t
print(json.dumps([took, resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1e6]))
"""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--out", type=Path, help="write the figures as JSON")
    parser.add_argument("--rows", type=int, default=20_000)
    parser.add_argument("--d-sae", type=int, default=4096)
    parser.add_argument("--steps", type=int, default=400)
    parser.add_argument("--threads", type=int, default=2)
    options = parser.parse_args()
    for name in (real_models.SMOLLM2, real_models.CNN):
        if reason := real_models.missing(name):
            print(f"Left out: {reason}")
            return
    torch.set_num_threads(options.threads)
    results = {}
    with tempfile.TemporaryDirectory() as folder:
        for part in (loading, language, vision):
            results |= part(Path(folder), options)
    if options.out:
        options.out.write_text(json.dumps(results, indent=2))


def loading(folder: Path, options: argparse.Namespace) -> dict[str, float]:
    """Seconds and peak memory (GB) of the first load and of one out of the cache, each in a new process."""
    command = [sys.executable, "-c", LOAD, str(real_models.smollm2_file())]
    environment = os.environ | {"SAELAB_CACHE": str(folder / "cache")}
    found = {}
    for name in ("first load", "cached load"):
        done = subprocess.run(command, env=environment, capture_output=True, text=True, check=True)
        seconds, peak = json.loads(done.stdout)
        found |= {f"{name}, s": seconds, f"{name}, peak GB": peak}
    size = sum(path.stat().st_size for path in (folder / "cache").rglob("*") if path.is_file())
    return shown("SmolLM2-135M-Instruct, Q4_1", {**found, "cache, MB": size / 1e6})


def language(folder: Path, options: argparse.Namespace) -> dict[str, float]:
    """The language model's layer."""
    subject = saelab.load_subject(real_models.smollm2_file(), progress=False)
    texts, source = real_models.texts(10_000, characters=500)
    train, held_out = texts[:-100], texts[-100:]
    clock = time.perf_counter()
    acts = saelab.harvest(subject, train, [HOOK], folder / "acts", max_rows=options.rows, progress=False)
    found = {"harvested rows / s": len(acts) / (time.perf_counter() - clock)}
    config = saelab.recipe("topk", d_in=576, d_sae=options.d_sae, k=32, hook=HOOK)
    clock = time.perf_counter()
    sae = saelab.train(config, acts, steps=options.steps, batch_size=1024, seed=0, progress=False).sae.eval()
    found["training, s"] = time.perf_counter() - clock
    clock = time.perf_counter()
    report = saelab.evaluate(sae, subject, held_out, max_rows=3_000)
    found["evaluation, s"] = time.perf_counter() - clock
    clock = time.perf_counter()
    saelab.index(subject, sae, held_out, folder / "features", max_rows=5_000, progress=False)
    found["indexed rows / s"] = 5_000 / (time.perf_counter() - clock)
    for name in ("fvu", "loss_recovered", "dead"):
        found |= {name: getattr(report.sae, name), f"{name}, untrained": getattr(report.untrained, name)}
    return shown(f"{HOOK} on {source}: {len(acts):,} rows, topk of {options.d_sae:,}", found)


def vision(folder: Path, options: argparse.Namespace) -> dict[str, float]:
    """The CNN's layer."""
    subject = real_models.cnn()
    pictures, _, source = real_models.images(300)
    clock = time.perf_counter()
    acts = saelab.harvest(subject, pictures[:240], [PIXELS], folder / "pixels", progress=False)
    found = {"pictures / s": 240 / (time.perf_counter() - clock)}
    config = saelab.recipe("topk", d_in=subject.width(PIXELS), d_sae=1024, k=16, hook=PIXELS)
    settings = {"batch_size": 1024, "seed": 0, "progress": False}
    clock = time.perf_counter()
    trained = saelab.train(config, acts, steps=options.steps, **settings).sae.eval()
    found["training, s"] = time.perf_counter() - clock
    untrained = saelab.SAE.create(config, seed=0, rows=acts.rows(range(1024), PIXELS).acts).eval()
    rows = subject.run(subject.prepare(pictures[240:]), read=PIXELS, output=False).acts[PIXELS].flatten(0, 1)
    spread = (rows - rows.mean(0)).square().sum()
    for name, sae in (("fvu", trained), ("fvu, untrained", untrained)):
        with torch.no_grad():
            found[name] = float((rows - sae(rows).x_hat).square().sum() / spread)
    return shown(f"{PIXELS} on {source}: {len(acts):,} rows, topk of 1,024", found)


def shown(title: str, found: dict[str, float]) -> dict[str, float]:
    print(f"\n{title}")
    for name, value in found.items():
        print(f"  {name:26} {value:10.3f}")
    return {f"{title}: {name}": value for name, value in found.items()}


if __name__ == "__main__":
    main()

"""A feature store at the size of real work: memory, disk and the time of asking.

python benchmarks/store_scale.py [--rows 1000000] [--d-sae 16384] [--l0 32] [--part-rows 20000] [--folder DIR]

Codes are drawn, not computed: rows fire l0 latents each, whose frequencies fall off as a power of their rank
(Zipf, exponent 0.7), and 20,000 tokens of which each has latents of its own, so that tables of tokens are as
large as on text. Nothing is timed but the store: parts, sorts, summaries, merge, then questions about random
latents, first with the files thrown out of the page cache where the system allows it. Memory is the largest
resident set of the process, beside what it was before the index began.
"""

from __future__ import annotations

import argparse
import importlib
import json
import os
import resource
import statistics
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import torch

from saelab.corpora import Document
from saelab.harvesting.batches import Batch
from saelab.layout import LINE
from saelab.stores import FeatureStore
from saelab.subjects.reading import Rows
from saelab.types import Codes, HookPoint, Shown

indexing = importlib.import_module("saelab.harvesting.index")  # the package has a function of this name
WORDS, LENGTH, BATCH = 20_000, 250, 20_000
ASKED = 100
"""Latents that are asked for, a tenth of them cold."""


def main() -> None:
    parser = argparse.ArgumentParser(description="A feature store at scale")
    parser.add_argument("--out", type=Path, help="write the figures as JSON")
    parser.add_argument("--rows", type=int, default=1_000_000)
    parser.add_argument("--d-sae", type=int, default=16_384)
    parser.add_argument("--l0", type=int, default=32)
    parser.add_argument(
        "--part-rows", type=int, help="rows of a part, in 20,000s (default: as an index does)"
    )
    parser.add_argument("--folder", type=Path, help="where to write (default: a temporary folder)")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory(dir=options.folder) as folder:
        figures = measure(options, Path(folder))
    for name, value in figures.items():
        print(f"{name:36} {value:,.3f}" if isinstance(value, float) else f"{name:36} {value:,}")
    if options.out:
        given = {"rows": options.rows, "d_sae": options.d_sae, "l0": options.l0}
        options.out.write_text(json.dumps({**given, **figures}, indent=2))


def measure(options: argparse.Namespace, folder: Path) -> dict[str, Any]:
    list(batches(min(options.rows, BATCH), Drawn(options.d_sae, options.l0)))
    if options.part_rows:
        indexing.PART_ROWS = options.part_rows
    before = peak()
    seconds_of, n_parts = draw(folder, options.rows, options.d_sae, options.l0)
    store = FeatureStore.open(folder)
    n_codes = store.manifest["n_codes"]
    sizes = {name: entry["bytes"] for name, entry in store.manifest["files"].items()}
    figures = {
        "rows": store.n_rows,
        "codes": n_codes,
        "parts": n_parts,
        "seconds, parts": seconds_of["parts"],
        "seconds, merge": seconds_of["merge"],
        "CPU seconds, merge": seconds_of["merge, CPU"],
        "codes a second": n_codes / (seconds_of["parts"] + seconds_of["merge"]),
        "GiB of memory before": before,
        "GiB of memory, largest": peak(),
        "bytes a code, by latent": sizes["codes_by_latent.parquet"] / n_codes,
        "bytes a code, by row": sizes["codes_by_row.parquet"] / n_codes,
        "bytes a code, all files": sum(sizes.values()) / n_codes,
    }
    for name, size in sizes.items():
        figures[f"MB, {name}"] = size / 1e6
    latents = np.random.default_rng(1).choice(options.d_sae, ASKED, replace=False).tolist()
    asked = {"latent(j)": "latent", "examples(j)": "examples", "tokens(j)": "tokens", "codes(j)": "codes"}
    for name, method in asked.items():
        cold = [seconds(getattr(fresh(folder), method), j) for j in latents[: ASKED // 10]]
        warm = [seconds(getattr(store, method), j) for j in latents]
        figures[f"ms, {name}, cold and just opened"] = 1e3 * statistics.median(cold)
        figures[f"ms, {name}, median"] = 1e3 * statistics.median(warm)
        figures[f"ms, {name}, worst"] = 1e3 * max(warm)
    return figures


def draw(
    folder: Path, rows: int, d_sae: int, l0: int, width: int = 64, seed: int = 0
) -> tuple[dict[str, float], int]:
    """Write a store of drawn codes; (seconds of its parts and of their merge, number of parts)."""
    folder.mkdir(parents=True, exist_ok=True)
    sae = Drawn(d_sae, l0, width, seed)
    fields = {"hook": {"name": "h", "io": "out", "n_heads": None}, "sae": f"s{seed}", "subject": "m"}
    fields |= {"corpus": "c", "packing": "document"}
    settings = {"window": [10, 10], "n_examples": 20, "n_quantile": 20, "seed": 0, "codes": "full"}
    start = time.perf_counter()
    parts = indexing._Parts(folder, sae, settings, fields)
    for _ in parts.written(timed := Timed(batches(rows, sae)), [HookPoint("h")]):
        pass
    written, cpu, n_parts = time.perf_counter(), time.process_time(), len(parts.done)
    parts.assemble()
    took = {"parts": written - start - timed.seconds - sae.seconds, "merge": time.perf_counter() - written}
    return {**took, "merge, CPU": time.process_time() - cpu}, n_parts


class Drawn:
    """What an SAE gives, drawn at random."""

    def __init__(self, d_sae: int, l0: int, width: int = 64, seed: int = 0) -> None:
        self.config = SimpleNamespace(d_sae=d_sae)
        self.W_dec = np.random.default_rng(seed).normal(size=(d_sae, width)).astype(np.float32)
        self.l0, self.seconds = l0, 0.0
        weight = 1 / np.arange(1, d_sae + 1) ** 0.7
        self.cumulative = np.cumsum(weight) / weight.sum()
        self.rng = np.random.default_rng(3 + seed)
        # of each token, latents that like it
        self.own = self.rng.integers(0, d_sae, (WORDS, 64))

    def encode_sparse(self, x: torch.Tensor) -> Codes:
        start = time.perf_counter()
        token = x[:, 0].numpy().astype(np.int64)
        half = self.l0 // 2
        common = np.searchsorted(self.cumulative, self.rng.random((len(token), self.l0 - half)))
        own = np.take_along_axis(self.own[token], self.rng.integers(0, 64, (len(token), half)), 1)
        latent = np.sort(np.concatenate([common, own], 1), axis=1)
        kept = np.c_[np.ones(len(token), bool), np.diff(latent, axis=1) > 0]
        value = self.rng.exponential(size=latent.shape).astype(np.float32) + 0.1
        indptr = np.r_[0, np.cumsum(kept.sum(1))]
        codes = Codes(indptr, latent[kept].astype(np.int32), value[kept], self.config.d_sae)
        self.seconds += time.perf_counter() - start
        return codes


def batches(n_rows: int, sae: Drawn) -> Iterator[Batch]:
    """Documents of LENGTH rows."""
    names = np.array([f"word{i}" for i in range(WORDS)])
    rng = np.random.default_rng(4)
    for first in range(0, n_rows, BATCH):
        n = min(BATCH, n_rows - first)
        token = np.minimum(rng.zipf(1.3, n) - 1, WORDS - 1)
        number = (first + np.arange(n)) // LENGTH
        documents = [Document(str(i), f"document {i}") for i in range(number[0], number[-1] + 1)]
        origin = np.stack([number, (first + np.arange(n)) % LENGTH + 1, np.zeros(n, np.int64)], 1)
        distinct, shown = np.unique(token, return_inverse=True)
        vocabulary = [Shown("token", name) for name in names[distinct].tolist()]
        nothing = np.zeros(n, bool)
        rows = Rows(origin, shown.astype(np.int32), vocabulary, token.astype(np.int32), nothing, ~nothing)
        acts = {"h": torch.from_numpy(token).float()[:, None]}
        yield Batch(documents, int(number[0]), acts, rows, [str(LINE)] * len(documents))


class Timed:
    """An iterator, and the seconds that it took."""

    def __init__(self, items: Iterator[Any]) -> None:
        self.items, self.seconds = items, 0.0

    def __iter__(self) -> Iterator[Any]:
        while True:
            start = time.perf_counter()
            item = next(self.items, None)
            self.seconds += time.perf_counter() - start
            if item is None:
                return
            yield item


def fresh(folder: Path) -> FeatureStore:
    """The store opened anew, its files out of the page cache."""
    for path in folder.iterdir():
        if path.is_file():
            with path.open("rb") as file:
                os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)
    return FeatureStore.open(folder)


def peak() -> float:
    """GiB"""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20


def seconds(call: Callable[[int], object], latent: int) -> float:
    start = time.perf_counter()
    call(latent)
    return time.perf_counter() - start


if __name__ == "__main__":
    main()

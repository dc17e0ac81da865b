"""Time and memory of a picture of many clustered directions: `python benchmarks/map_time.py umap 131072`."""

from __future__ import annotations

import resource
import sys
import time

import numpy as np

from saelab.analysis.maps.faithful import faith
from saelab.analysis.maps.layouts import laid

WIDTH, EACH = 768, 64
"""Dimensions, and directions of one cluster."""


def directions(n: int) -> np.ndarray:
    """Unit vectors float32 [n WIDTH] about n / EACH centres, with noise as long as these."""
    rng = np.random.default_rng(0)
    centres = rng.standard_normal((max(1, n // EACH), WIDTH), np.float32)
    rows = np.empty((n, WIDTH), np.float32)
    for low in range(0, n, 8192):
        of = np.arange(low, min(n, low + 8192)) % len(centres)
        rows[low : low + 8192] = centres[of] + rng.standard_normal((len(of), WIDTH), np.float32)
    rows /= np.linalg.norm(rows, axis=1, keepdims=True)
    return rows


def main() -> None:
    """Lay them out, tell how far it is every 15 s, then judge the picture beside PCA."""
    method, n = sys.argv[1], int(sys.argv[2])
    rows = directions(n)
    began, told = time.process_time(), [0.0]

    def say(what: str) -> None:
        peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20
        print(f"{time.process_time() - began:6.0f} s of CPU, peak {peak:.2f} GiB: {what}", flush=True)

    def tell(what: str, share: float) -> None:
        if time.monotonic() - told[0] > 15:
            told[0] = time.monotonic()
            say(f"{what} {share:.0%}")

    for name in (method, "pca"):
        picture = laid(rows, name, seed=0, n_neighbors=15, tell=tell)
        say(f"laid by {name}")
        say(str(faith(rows, picture)))


if __name__ == "__main__":
    main()

"""Damaged files of every format: each must be refused by a FormatError or load as an SAE that encodes;
nothing else may happen, nor take long or much memory. Gzipped ones are damaged as they are and, every other
time, before they are packed. Prints the counts and writes them as JSON.

    python benchmarks/fuzz_formats.py [how many] [out.json] [what a folder's name must hold]
"""

from __future__ import annotations

import json
import resource
import sys
import tempfile
import time
from collections import Counter
from pathlib import Path

import torch

ROOT = Path(__file__).parents[1]
sys.path.insert(0, str(ROOT / "tests"))

import mutations  # noqa: E402

from saelab.formats import load_sae  # noqa: E402
from saelab.types import FormatError  # noqa: E402

GOLDEN = mutations.GOLDEN
SLOW = 5.0
"""Seconds for a file of a few kilobytes."""


def main() -> None:
    """Mutate and load, the folders in turn."""
    count = int(sys.argv[1]) if len(sys.argv) > 1 else 10_000
    wanted = sys.argv[3] if len(sys.argv) > 3 else ""
    sources, counts, bad = (
        [f for f in mutations.goldens() if wanted in str(f.relative_to(GOLDEN))],
        Counter(),
        [],
    )
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    longest = 0.0
    with tempfile.TemporaryDirectory() as spare:
        for seed in range(count):
            source = sources[seed % len(sources)]
            said = mutations.mutate(source, Path(spare) / "sae", seed)
            start = time.perf_counter()
            try:
                sae = load_sae(Path(spare) / "sae")
                assert sae.encode(torch.ones(2, sae.d_in)).shape == (2, sae.d_sae)
                counts["loaded"] += 1
            except FormatError:
                counts["refused"] += 1
            except Exception as error:
                bad.append(
                    f"seed {seed}, {source.relative_to(GOLDEN)}, {said}: {type(error).__name__}: {error}"
                )
            seconds = time.perf_counter() - start
            longest = max(longest, seconds)
            if seconds > SLOW:
                bad.append(f"seed {seed}, {source.relative_to(GOLDEN)}, {said}: {seconds:.1f} s")
    grown = (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) / 1024
    result = {
        "files": count, "folders": len(sources), "refused": counts["refused"], "loaded": counts["loaded"],
        "other": len(bad), "longest_s": round(longest, 2), "memory_grew_mb": round(grown),
    }  # fmt: skip
    for line in bad:
        print(line[:300])
    print(json.dumps(result))
    if len(sys.argv) > 2:
        Path(sys.argv[2]).write_text(json.dumps(result) + "\n")
    sys.exit(bool(bad))


if __name__ == "__main__":
    main()

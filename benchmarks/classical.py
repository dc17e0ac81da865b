"""By how much the embedded SAEs beat PCA, ICA, semi-NMF, k-means and sparse PCA at equal L0, over seeds.

python benchmarks/classical.py [--documents 120] [--seeds 3] [--fit 2000 10000 20000] [--record NAME]

The suite "classical": each method is fitted on half of the documents and judged on the other half; the seed
changes the halves, the starts of the methods and the untrained SAE. --fit: k-means fitted on so many rows of
600 other documents instead, judged with the SAE on 4,000 rows that come after.
"""

from __future__ import annotations

import argparse
import tempfile

import numpy as np
import torch
from results import record

import saelab
from saelab.analysis import Classical

HOOKS = ("blocks.2.hook_resid_post",)
METHODS = ("pca", "ica", "sparse_pca", "semi_nmf", "kmeans")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--documents", type=int, default=120)
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--fit", type=int, nargs="*", default=[], help="rows that k-means is fitted on")
    parser.add_argument("--record", help="keep the figures as benchmarks/results/NAME.json")
    options = parser.parse_args()
    torch.set_num_threads(1)
    subject = saelab.Lab.embedded().subject
    corpus = list(saelab.corpora.world(seed=77, n_documents=options.documents))
    rows = []
    for hook in HOOKS:
        sae = saelab.load_sae(saelab.embedded.sae_folder(hook))
        for seed in range(options.seeds):
            suite = Classical(methods=METHODS, iterations=200)
            found = saelab.evaluate(sae, subject, corpus, suites=(suite,), seed=seed).suites["classical"]
            for name, claim in found.claims.items():
                low, high = claim.interval
                rows.append({
                    "hook": hook, "seed": seed, "claim": name, "value": claim.value, "from": low, "to": high,
                    "control": claim.control, **{each.what: each.value for each in claim.also},
                })  # fmt: skip
                print(
                    " ".join(f"{k} {v:.4g}" if isinstance(v, float) else f"{v}" for k, v in rows[-1].items())
                )
            print(found.left_out, flush=True)
    for n in options.fit:
        x = rows_of(subject, HOOKS[0])
        suite = Classical(methods=("kmeans",), acts=x[:n], rows=max(n, 2))
        sae = saelab.load_sae(saelab.embedded.sae_folder(HOOKS[0]))
        claims = saelab.evaluate(sae, x[20_000:], suites=(suite,)).suites["classical"].claims
        print(n, claims["fvu"], claims["margin over kmeans"], claims["margin over kmeans by omp"], sep="; ")
    if options.record:
        record(options.record, rows, threads=1, documents=options.documents)


def rows_of(subject: saelab.types.Subject, hook: str) -> torch.Tensor:
    """24,000 activations."""
    corpus = saelab.corpora.world(seed=1, n_documents=600)
    with tempfile.TemporaryDirectory() as folder:
        store = saelab.harvest(subject, corpus, [hook], f"{folder}/acts", max_rows=24_000, progress=False)
        return store.acts(np.arange(24_000), hook)


if __name__ == "__main__":
    main()

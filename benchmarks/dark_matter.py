"""What is in the error of the SAEs that ship with saelab, each figure beside its controls.

python benchmarks/dark_matter.py [--documents 200] [--record NAME]

For each SAE of the residual stream: how much of its error is linear in the activations (on documents that had
no part in the fit), what gradient pursuit avoids at equal L0, what each part is worth to the model's loss.
"""

from __future__ import annotations

import argparse

import torch
from results import record

import saelab
from saelab.analysis import dark_matter

HOOKS = [hook for hook in saelab.embedded.SAE_HOOKS if hook.endswith("resid_post")]
SEED = 7
"""Of the documents; those that the SAEs were trained on have other seeds."""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--documents", type=int, default=200)
    parser.add_argument("--record", help="keep the figures as benchmarks/results/NAME.json")
    options = parser.parse_args()
    torch.set_num_threads(1)
    subject, rows = saelab.Lab.embedded().subject, []
    corpus = saelab.corpora.world(seed=SEED, n_documents=options.documents)
    for hook in HOOKS:
        found = dark_matter(saelab.load_sae(saelab.embedded.sae_folder(hook)), subject, corpus)
        print(found, flush=True)
        for name, score in found.scores.items():
            also = "; ".join(f"{each.what} {each.value:.4g}" for each in score.also)
            rows.append({
                "hook": hook, "score": name, "value": score.value, "from": score.interval[0],
                "to": score.interval[1], "beside": score.what, "control": score.control, "also": also,
            })  # fmt: skip
        if options.record:  # what is there is kept if the next one takes too long
            record(options.record, rows, documents=options.documents, seed=SEED)


if __name__ == "__main__":
    main()

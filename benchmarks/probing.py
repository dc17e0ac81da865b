"""What latents know: sparse probing, absorption, TPP and SCR, each beside its controls.

python benchmarks/probing.py [--record] [--documents 800] [--sae FOLDER]

On the SAEs of the embedded model, over the labelled world; with --sae on one of SmolLM2-135M-Instruct (as
`benchmarks/real_sae.py` makes it), over judged sentences and AxBench's concepts. Kept as
benchmarks/results/probing-embedded.json and probing-smollm2.json.
"""

from __future__ import annotations

import argparse
import sys
import time
import zipfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from results import record

import saelab
from saelab.analysis import SCR, TPP, Absorption, Probing
from saelab.analysis.controls import Beside
from saelab.analysis.sources import Ground
from saelab.corpora import Document
from saelab.types import SaelabError

sys.path.insert(0, str(Path(__file__).parents[1] / "tests"))
import real_models

HOOKS = ("blocks.1.hook_resid_post", "blocks.2.hook_resid_post", "blocks.3.hook_resid_post")
SENTENCES, CHARACTERS = 400, 400
"""Of either kind; characters of a text."""
SHOWN = (
    "top_1",
    "top_5",
    "top_10",
    "dense",
    "letters_",
    "labels_",
    "tpp_10",
    "others_10",
    "tpp_50",
    "scr_10",
    "centred_10",
)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--record", action="store_true", help="keep the figures")
    parser.add_argument("--documents", type=int, default=800)
    parser.add_argument("--sae", type=Path, help="of SmolLM2")
    parser.add_argument("--threads", type=int, default=1)
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    lines: list[dict[str, Any]] = []
    if options.sae is None:
        name, ground = "probing-embedded", saelab.corpora.world(seed=77, n_documents=options.documents)
        lab = saelab.Lab.embedded()
        suites = (Probing(), Probing(by="effect"), Absorption(examples=0), TPP(), SCR())
        for hook, sae in ((hook, lab.saes[hook]) for hook in HOOKS):
            lines += measured(hook, sae, Ground(lab.subject, lab.subject.corpus(ground)), suites)
    else:
        if reason := real_models.missing(real_models.SMOLLM2):
            print(f"Left out: {reason}")
            return
        name, sae = "probing-smollm2", saelab.load_sae(options.sae)
        subject = saelab.load_subject(real_models.smollm2_file(), progress=False)
        for what, documents, suites in (
            (
                "sentence polarity",
                list(sentences()),
                (Probing(), Probing(by="effect"), Absorption(words=3_000)),
            ),
            ("AxBench", list(concepts()), (Probing(), Probing(by="effect"), TPP())),
        ):
            lines += measured(what, sae, Ground(subject, subject.corpus(documents)), suites)
    if options.record:
        record(name, lines, threads=options.threads)


def measured(where: str, sae: saelab.SAE, ground: Ground, suites: tuple[Any, ...]) -> list[dict[str, Any]]:
    """A row for each claim that is shown."""
    lines = []
    for suite in suites:
        clock = time.thread_time()
        try:
            found = suite.run(sae, ground)
        except SaelabError as error:
            print(f"{where}, {suite.name}: left out, {error}")
            continue
        took = time.thread_time() - clock
        print(
            f"{where}, {suite.name}: {took:.1f} s of CPU; left out: {', '.join(found.left_out) or 'nothing'}"
        )
        for name, claim in found.claims.items():
            if not name.startswith(SHOWN) or not isinstance(claim, Beside):
                continue
            others = {claim.what: claim.control, **{each.what: each.value for each in claim.also}}
            line = {
                "where": where, "claim": f"{suite.name}: {name}",
                "by": getattr(suite, "by", ""), "this SAE": claim.value,
                "from": claim.interval[0], "to": claim.interval[1], **others,
                "apart": "yes" if claim.apart else "no", "n": claim.n,
            }  # fmt: skip
            print(
                "  " + ", ".join(f"{k} {v:.3f}" if isinstance(v, float) else str(v) for k, v in line.items())
            )
            lines.append(line)
    return lines


def sentences(first: int = 0, n: int = SENTENCES) -> Iterator[Document]:
    """Sentences of reviews that people judged, n of either kind."""
    with zipfile.ZipFile(real_models.DATA / "language" / "text" / "sentence_polarity.zip") as file:
        for kind, label in (("neg", "negative"), ("pos", "positive")):
            texts = file.read(f"sentence_polarity/rt-polarity.{kind}").decode("latin-1").splitlines()
            for i, text in enumerate(texts[first : first + n], first):
                yield Document(f"{kind} {i}", text, labels=(label,))


def concepts(characters: int = CHARACTERS) -> Iterator[Document]:
    """Answers of a model that were asked to hold a concept, and answers that were not."""
    import pandas as pd

    table = pd.read_parquet(real_models.DATA / "concepts" / "axbench" / "concept10_train.parquet")
    for i, line in enumerate(table.to_dict("records")):
        label = () if line["category"] == "negative" else (f"concept {line['concept_id']}",)
        if str(line["output"]).strip():
            yield Document(str(i), line["output"][:characters], labels=label)


if __name__ == "__main__":
    main()

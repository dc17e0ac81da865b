"""SAEs of SmolLM2-135M-Instruct by several recipes, of one width, at one L0, trained on the same rows.

python benchmarks/real_recipes.py [--parts core known suites steering] [--record] [--rows 30000] [--steps 400]

Rows are those of `real_sae.py` (tweets, WikiText, dialogues; blocks.12.hook_resid_post, each brought to one
norm). core: what held-out WikiText and tweets lose. known: probing, SCR and TPP on judged sentences and
AxBench's concepts. suites: all that `saelab.evaluate` has, of seed 0. steering: one latent, pushed both ways.
Rows, SAEs and reports are kept beside the fetched models, and what is there is not made again.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from probing import concepts, sentences
from promises import real_texts
from promises.real_texts import real_models
from promises.variational import sampled
from prompts import named
from real_sae import HOOK, K, harvested, ordinary
from real_steering import steered
from results import record

import saelab
from saelab.analysis import SCR, TPP, Absorption, Probing, Reports, read_report
from saelab.analysis.controls import Beside, controls_of
from saelab.analysis.suites import Suite, registered
from saelab.corpora import Document
from saelab.sae import SAE

VARIATIONAL = {"aux_coefficient": 0.0}
"""As in `promises.variational`; in so short a run no latent of any arm is dead for long enough to matter."""
ARMS: dict[str, tuple[str, dict[str, Any]]] = {
    "topk": ("topk", {}),
    "topk, k 36": ("topk", {"k": 36}),
    "batchtopk": ("batchtopk", {}),
    "matryoshka": ("matryoshka", {}),
    "abs_topk": ("abs_topk", {}),
    "variational, not sampled": ("variational", VARIATIONAL | {"sampling": False, "sigma": 1.0, "kl": 0.01}),
    "variational, sigma 0.16": ("variational", VARIATIONAL | {"sigma": 0.16}),
}
"""Thresholds that let 32 latents a row through in training let 36 through on the held-out texts, so that TopK
stands there with as many."""
FULL = ("topk", "batchtopk", "matryoshka")
"""Those of which every suite is run."""
APART = {"ravel": "learns masks by gradients through the model, minutes for each attribute: run it alone"}
"""Suites that take longer than all others together on a model of this size."""
PARTS = ("core", "known", "suites", "steering")
PARAGRAPHS, TWEETS, SCORED = 12, 120, 3_000
CHARACTERS = 180
"""Of a text of AxBench."""
OF_EITHER, SUITE_ROWS = 45, 2_200
"""Judged sentences of either kind, and rows, that all suites see."""
FILM = {"film", "movie", "movies", "films"}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--parts", nargs="*", choices=PARTS, default=PARTS)
    parser.add_argument("--rows", type=int, default=30_000)
    parser.add_argument("--d-sae", type=int, default=1024)
    parser.add_argument("--steps", type=int, default=400)
    parser.add_argument("--seeds", type=int, default=2)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--record", action="store_true", help="keep the figures")
    options = parser.parse_args()
    if reason := real_texts.missing():
        print(f"Left out: {reason}")
        return
    torch.set_num_threads(options.threads)
    place = real_models.folder() / "saes" / f"real-recipes-{options.rows}-{options.steps}-{options.d_sae}"
    place.mkdir(parents=True, exist_ok=True)
    subject = saelab.load_subject(real_models.smollm2_file(), progress=False)
    saes = trained(subject, place, options)
    lines: list[dict[str, Any]] = []
    for part in options.parts:
        for line in globals()[part](subject, saes, place):
            lines.append({"part": part, **line})
        if options.record:  # what is there is kept if the next part takes too long
            record("real_recipes", lines, rows_trained_on=options.rows, steps=options.steps, batch=1024,
                   d_sae=options.d_sae, k=K, seeds=options.seeds, threads=options.threads)  # fmt: skip
        print(f"\n{tables([line for line in lines if line['part'] == part])}", flush=True)


def trained(subject: Any, place: Path, options: argparse.Namespace) -> dict[str, SAE]:
    """ "recipe, seed" -> its SAE."""
    path, rows = place / "rows.pt", None
    found = {}
    for seed in range(options.seeds):
        for name, (recipe, how) in ARMS.items():
            folder = place / f"{name}, {seed}"
            if not (folder / "config.json").exists():
                if not path.exists():
                    torch.save(harvested(subject, options.rows), path)
                rows = torch.load(path, weights_only=True) if rows is None else rows
                config = saelab.recipe(
                    recipe,
                    d_in=rows.shape[1],
                    d_sae=options.d_sae,
                    hook=HOOK,
                    normalise="sphere",
                    **{"k": K, **how},
                )
                clock = time.thread_time()
                run = saelab.train(
                    config, rows, steps=options.steps, batch_size=1024, seed=seed, progress=False
                )
                run.sae.eval().save(folder)
                print(f"{folder.name}: {time.thread_time() - clock:.0f} s of CPU", flush=True)
            found[folder.name] = SAE.load(folder).eval()
    return found


def core(subject: Any, saes: Mapping[str, SAE], place: Path) -> Iterator[dict[str, Any]]:
    """Reconstruction and loss; and what draws do to codes."""
    texts = [text[:500] for text in real_texts.paragraphs(held_out=True)[:PARAGRAPHS]]
    texts += [tweet.text for tweet in real_texts.tweets("prompting")[:TWEETS]]
    reports = kept(
        place / "core.json", saes, lambda some: saelab.evaluate(some, subject, texts, max_rows=SCORED)
    )
    yield from told("held-out texts", reports, ("fvu", "l0", "dead", "loss_recovered", "kl"))
    rows, seen = ordinary(subject, texts), torch.load(place / "rows.pt", weights_only=True)
    for name, sae in saes.items():
        with torch.no_grad():
            l0 = np.mean([float((sae.encode(part) != 0).sum(1).float().mean()) for part in seen.split(2000)])
        for score, value in {**sampled(sae, rows), "L0 of the rows trained on": l0}.items():
            yield {"of": "as trained", "sae": name, "score": score, "value": value}


def known(subject: Any, saes: Mapping[str, SAE], place: Path) -> Iterator[dict[str, Any]]:
    """What is known of texts, in few latents: on activations that are read once."""
    shown = ("probing: top_1", "probing: top_5", "probing: top_10", "probing: dense", "scr: scr_10",
             "scr: centred_10", "tpp: tpp_10", "tpp: own_10", "tpp: others_10")  # fmt: skip
    reviews, texts = list(sentences()), list(concepts(CHARACTERS))
    good = ["positive" in document.labels for document in reviews]
    film = [bool(FILM & set(document.text.split())) for document in reviews]
    concept = ["".join(document.labels) for document in texts]
    for name, documents, asked in (
        ("reviews", reviews, (Probing(labels={"positive": good}),
                              SCR(labels={"positive": good, "film": film}, pairs=(("positive", "film"),)))),
        ("AxBench", texts, (Probing(labels=concept, rows=80_000), TPP(labels=concept, rows=80_000))),
    ):  # fmt: skip
        store = saelab.harvest(subject, documents, [HOOK], place / name, progress=False)
        reports = kept(
            place / f"{name}.json", saes, lambda some, s=store, q=asked: saelab.evaluate(some, s, suites=q)
        )
        yield from told(name, reports, shown)


def suites(subject: Any, saes: Mapping[str, SAE], place: Path) -> Iterator[dict[str, Any]]:
    """Everything there is, of one seed."""
    documents = [
        Document(d.id, d.text, labels=(*d.labels, "film" if FILM & set(d.text.split()) else "no film"))
        for d in sentences(n=OF_EITHER)
    ]
    train, test = (named(subject, n, seed) for n, seed in ((100, 0), (40, 1)))
    own: dict[str, Suite] = {
        "absorption": Absorption(examples=2, words=800),
        "principled": registered()["principled"](train=train, test=test),
    }
    every = [own.get(name) or cls() for name, cls in registered().items() if name not in APART]
    for name in FULL:
        arm = f"{name}, 0"
        clock = time.thread_time()
        reports = kept(
            place / f"suites, {arm}.json", {arm: saes[arm]},
            lambda some: saelab.evaluate(some, subject, documents, suites=every, max_rows=SUITE_ROWS),
        )  # fmt: skip
        print(f"suites of {arm}: {time.thread_time() - clock:.0f} s of CPU", flush=True)
        yield from told("all suites", reports)
        for what, why in {**reports[arm].left_out, **APART}.items():
            yield {"of": "left out", "sae": arm, "score": what, "why": why}


def steering(subject: Any, saes: Mapping[str, SAE], place: Path) -> Iterator[dict[str, Any]]:
    """Where one latent, pushed either way, takes what is written."""
    seeds = sorted({int(name.rpartition(", ")[2]) for name in saes})
    for seed in seeds:
        own = {name.rpartition(", ")[0]: sae for name, sae in saes.items() if name.endswith(f", {seed}")}
        for line in steered(subject, own, place / f"steering, {seed}.json", seed):
            yield {"of": "openings of reviews", **line}


def kept(path: Path, saes: Mapping[str, SAE], make: Callable[[Mapping[str, SAE]], Reports]) -> Reports:
    """The reports that are there, and those of the other SAEs, which are made."""
    known = read_report(path) if path.exists() else Reports({})
    assert isinstance(known, Reports)
    missing = {name: sae for name, sae in saes.items() if name not in known.reports}
    if missing:
        known = Reports({**known.reports, **make(missing).reports})
        known.save(path)
    return Reports({name: known[name] for name in saes})


def told(of: str, reports: Reports, scores: Sequence[str] = ()) -> Iterator[dict[str, Any]]:
    """A line for each SAE and claim."""
    for name, report in reports.reports.items():
        for score, claim in report.claims.items():
            if scores and score not in scores:
                continue
            line = {"of": of, "sae": name, "score": score, "value": claim.value}
            if isinstance(claim, Beside):
                line |= {"from": claim.interval[0], "to": claim.interval[1], "n": claim.n,
                         "apart": "yes" if claim.apart else "no", **controls_of(claim)}  # fmt: skip
            yield line


def tables(lines: Sequence[Mapping[str, Any]]) -> str:
    """Markdown: an SAE a row, seeds put together, [least, largest end of their intervals]; below it its first
    control."""
    found = []
    for of in dict.fromkeys(line["of"] for line in lines):
        own = [line for line in lines if line["of"] == of and "value" in line]
        scores = list(dict.fromkeys(line["score"] for line in own))
        arms = list(dict.fromkeys(line["sae"].rpartition(", ")[0] for line in own))
        found += ["", of, "", f"| SAE | {' | '.join(scores)} |", f"|---|{'---|' * len(scores)}"]
        for arm in arms:
            cells = []
            for score in scores:
                some = [x for x in own if x["score"] == score and x["sae"].rpartition(", ")[0] == arm]
                cells.append(cell(some))
            found.append(f"| {arm} | {' | '.join(cells)} |")
    return "\n".join(found)


def cell(lines: Sequence[Mapping[str, Any]]) -> str:
    if not lines:
        return "-"
    text = f"{np.mean([line['value'] for line in lines]):.3g}"
    if "from" in lines[0]:
        text += f" [{min(line['from'] for line in lines):.3g}, {max(line['to'] for line in lines):.3g}]"
    known = ("of", "part", "sae", "score", "value", "from", "to", "n", "apart")
    others = {
        name: np.mean([line[name] for line in lines if name in line]) for line in lines for name in line
        if name not in known
    }  # fmt: skip
    return "; ".join([text, *(f"{name} {value:.3g}" for name, value in others.items())])


if __name__ == "__main__":
    main()

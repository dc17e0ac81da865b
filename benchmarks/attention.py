"""What attribution to heads costs, and whether it is true of the shipped SAEs.

python benchmarks/attention.py speed [--rounds 15] [--record attention-speed]
python benchmarks/attention.py truth [--documents 200] [--record attention-truth]
python benchmarks/attention.py induction [--work DIR]
python benchmarks/attention.py whole [--documents 200] [--record attention-whole]
python benchmarks/attention.py large [--record attention-large]

Speed: `dfa` of one latent over a text of 256 tokens beside one plain pass of the model over the same text,
interleaved, ratios within a round, in processor time of the thread that works; `recursive_dfa` of depth 4.

Truth, on documents of a seed that no training saw, intervals over documents or latents:
edges     Spearman's correlation of `dfa`, and of `edge_effects`, with what happens when the edge is zeroed
          and all else runs free, beside what the pattern alone tells
heads     codes lost by latents without the head that they belong to, over those that do not
quality   loss recovered by the SAE's reconstruction of z where mean ablation is 0, its L0 and dead latents,
          beside principal components of the same number and the same SAE untrained (a random decoder)

Induction: an SAE trained as the shipped ones are, on the z of the layer where the induction heads are, and
how many of its latents are of which family; about ten minutes of one core.

Whole heads, on the documents of truth: Spearman's correlation, over the heads before a latent, of what is
lost without the head with its part by `dfa`, and of its size with the latent's weights, beside the pattern
alone.

Large: what `lab.heads` answers on SmolLM2-135M over a text of 15 tokens, each question asked once and for the
first time, in processor time, of SAEs that were not trained (what an answer costs does not depend on that);
and `head_examples` over some documents, beside plain passes of the same.
"""

from __future__ import annotations

import argparse
import statistics
import tempfile
import time
from collections import defaultdict
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from generation import models
from results import record
from scipy.stats import spearmanr

import saelab
from saelab.analysis import (
    dfa,
    edge_changes,
    edge_effects,
    families,
    head_attribution,
    head_effects,
    head_examples,
    head_losses,
    head_readings,
    recursive_dfa,
)
from saelab.analysis.controls import Sums, interval, untrained
from saelab.commands.build_embedded import D_SAE, SAE_BATCH, SAE_ROWS, SAE_STEPS, K, mixture
from saelab.embedded import SAE_HOOKS, model_folder, sae_folder
from saelab.interventions import MeanAblate, Reconstruct

SEED = 7_001
"""Of the documents."""
Z = [hook for hook in SAE_HOOKS if hook.endswith("hook_z")]


def main() -> None:
    parser = argparse.ArgumentParser(description="What attribution to heads costs, and whether it is true")
    parser.add_argument("what", choices=["speed", "truth", "induction", "whole", "large"])
    parser.add_argument("--rounds", type=int, default=15)
    parser.add_argument("--documents", type=int, default=200)
    parser.add_argument("--work", help="a folder for the activations and the run of induction")
    parser.add_argument("--record", help="keep the figures as benchmarks/results/NAME.json")
    options = parser.parse_args()
    torch.set_num_threads(1)
    if options.what == "large":
        rows = large(models()["SmolLM2-135M"]())
        if options.record:
            record(options.record, rows)
        return
    subject = saelab.load_subject(model_folder())
    saes = {hook: saelab.load_sae(sae_folder(hook)) for hook in SAE_HOOKS}
    if options.what == "speed":
        rows, facts = speed(subject, saes, options.rounds), {"rounds": options.rounds}
    elif options.what == "induction":
        rows, facts = induction(subject, options.work), {}
    else:
        run = truth if options.what == "truth" else whole
        rows, facts = run(subject, saes, options.documents), {"documents": options.documents}
    if options.record:
        record(options.record, rows, threads=1, **facts)


def speed(subject: Any, saes: Mapping[str, Any], rounds: int) -> list[dict[str, Any]]:
    """Medians over rounds, of milliseconds and of ratios to the plain pass of the same round."""
    document = " ".join(d.text for d in saelab.corpora.world(seed=SEED, n_documents=40))
    text = _of_length(subject, document, 256)
    inputs, z = subject.prepare([text]), [saes[hook] for hook in Z]

    def plain() -> None:
        with torch.no_grad():
            subject.model(**inputs.data, use_cache=False)

    runs: dict[str, Callable[[], object]] = {"plain pass": plain}
    for hook, sae in saes.items():
        runs[f"dfa, {hook}"] = lambda sae=sae: dfa(subject, sae, text, 5, 200)
        if hook not in Z:
            runs[f"edge_effects, {hook}"] = lambda sae=sae: edge_effects(subject, sae, text, 5, 200)
    last = saes[SAE_HOOKS[2]]
    runs["recursive_dfa of depth 4"] = lambda: recursive_dfa(subject, last, text, 5, 200, z, depth=4)
    seconds: dict[str, list[float]] = {name: [] for name in runs}
    for turn in range(rounds + 2):
        for name, run in runs.items():
            begin = time.thread_time()
            run()
            if turn > 1:
                seconds[name].append(time.thread_time() - begin)
    rows = []
    for name, own in seconds.items():
        ratios = [a / b for a, b in zip(own, seconds["plain pass"], strict=True)]
        rows.append({
            "what": name, "ms": round(1000 * statistics.median(own), 2),
            "x plain pass": round(statistics.median(ratios), 2), "largest x": round(max(ratios), 2),
        })  # fmt: skip
        print(rows[-1], flush=True)
    return rows


def large(subject: Any) -> list[dict[str, Any]]:
    """Processor seconds of each question, asked for the first time."""
    rows: list[dict[str, Any]] = []

    def timed(what: str, run: Callable[[], Any]) -> Any:
        begin = time.process_time()
        found = run()
        rows.append({"what": what, "seconds": round(time.process_time() - begin, 2)})
        print(rows[-1], flush=True)
        return found

    def sae(hook: str) -> Any:
        x = subject.run(subject.prepare([text]), hook, output=False).acts[hook][0, 1:]
        config = saelab.recipe("topk", d_in=x.shape[1], d_sae=512, k=32, hook=hook)
        return saelab.SAE.create(config, 0, x)

    text = "When Mary and John went to the store, John gave a drink to"
    texts = [document.text[:400] for document in saelab.corpora.world(seed=SEED, n_documents=12)]
    lab = saelab.Lab(subject, {"stream": sae("blocks.20.hook_resid_post"), "z": sae("blocks.12.attn.hook_z")})
    latent = int(lab.codes(text).codes.indices[-1])
    view = timed("the view", lambda: lab.heads(text, latent))
    dest = view.answer("where", {"latent": latent}).header["dest"]
    of = {"latent": latent, "dest": dest}
    timed("told", lambda: view.answer("told", {}))
    timed("the first dfa", lambda: view.answer("dfa", of))
    timed("another dfa", lambda: view.answer("dfa", {**of, "dest": dest - 1}))
    timed("by gradient", lambda: view.answer("gradient", of))
    timed("way back, depth 3", lambda: view.answer("tree", {**of, "depth": 3, "width": 2}))
    timed("a layer's heads taken out", lambda: view.answer("without", {**of, "layer": 5}))
    found = timed("head_examples of 12 documents", lambda: head_examples(subject, texts, documents=12))
    ids = [subject.to_tokens(each)[:128] for each in texts]
    timed("plain passes of the same", lambda: [subject.run(subject.padded([each])) for each in ids])
    print(found)
    return rows


def truth(subject: Any, saes: Mapping[str, Any], n: int) -> list[dict[str, Any]]:
    """One line for each SAE and score."""
    documents = list(saelab.corpora.world(seed=SEED, n_documents=n))
    rows = []
    for hook, sae in saes.items():
        for found in (_edges(subject, sae, documents[: n // 4]), *_heads(subject, sae, documents)):
            rows.append({"sae": hook} | found)
            print(rows[-1], flush=True)
    for hook in Z:
        for found in _quality(subject, saes[hook], documents[: n // 2], documents[n // 2 :]):
            rows.append({"sae": hook} | found)
            print(rows[-1], flush=True)
    return rows


def _edges(subject: Any, sae: Any, documents: list[Any]) -> dict[str, Any]:
    """One latent a document: the strongest at a position drawn from its second half."""
    told = defaultdict(list)
    for text, latent, dest in _strong(subject, sae, documents):
        found = edge_changes(subject, sae, text, latent, dest, n=96)
        for name, score in (("", found.agreement), ("sizes", found.sizes), ("effects", found.foretold)):
            told[name].append(score.value)
            told[f"{name} control".strip()].append(score.control)
    return {"score": "edges, Spearman"} | {
        f"{name} {end}".strip(): value for name, own in told.items() for end, value in _mean(own).items()
    }


def induction(subject: Any, work: str | None) -> list[dict[str, Any]]:
    """Families of latents where the heads that repeat are, at two bars, of few and of many rows."""
    place, hook = Path(work or tempfile.mkdtemp()), f"blocks.{subject.n_layers - 1}.attn.hook_z"
    acts = saelab.harvest(subject, mixture(seed=1), [hook], place / "acts", max_rows=SAE_ROWS)
    config = saelab.recipe("topk", d_in=subject.width(hook), d_sae=D_SAE, k=K, hook=subject.hook_point(hook))
    sae = saelab.train(config, acts, steps=SAE_STEPS, batch_size=SAE_BATCH, seed=0, out=place / "run").sae
    report = saelab.evaluate(sae, subject, mixture(seed=2).take(600), max_rows=30_000)
    print(report, flush=True)
    rows = []
    for n_rows, n_documents in ((40_000, 600), (200_000, 3_200)):
        for bar in (0.8, 0.5):
            corpus = saelab.corpora.world(seed=SEED, n_documents=n_documents)
            found = families(subject, sae, corpus, max_rows=n_rows, bar=bar)
            print(found, flush=True)
            rows.append({"rows": n_rows, "bar": bar, "found": str(found).splitlines()[0]})
    return rows


def whole(subject: Any, saes: Mapping[str, Any], n: int) -> list[dict[str, Any]]:
    """Whole heads: one line for each SAE and score."""
    documents = list(saelab.corpora.world(seed=SEED, n_documents=n))[: n // 4]
    rows = []
    for hook, sae in saes.items():
        told: dict[str, list[float]] = {}
        z = hook in Z
        weights = head_attribution(sae, subject.n_heads).encoder if z else head_readings(subject, sae)
        for text, latent, dest in _strong(subject, sae, documents):
            found = head_effects(subject, sae, text, latent, dest)
            # of an SAE on z the weights tell of one layer's heads alone
            own = found.effects[-1:] if z else found.effects
            share = weights[latent].reshape(own.shape)
            scores = {
                "parts": found.agreement.value, "parts, pattern": found.agreement.control,
                "sizes": found.sizes.value, "sizes, pattern": found.sizes.control,
                "weights": float(spearmanr(share.ravel(), abs(own).ravel()).statistic),
                "weights, pattern": float(
                    spearmanr(found.weights[-len(own) :].ravel(), abs(own).ravel()).statistic
                ),
            }  # fmt: skip
            for name, value in scores.items():
                told.setdefault(name, []).append(value)
        for name, values in told.items():
            rows.append({"sae": hook, "score": name} | _mean(values))
            print(rows[-1], flush=True)
    return rows


def _strong(subject: Any, sae: Any, documents: list[Any]) -> Iterator[tuple[str, int, int]]:
    """(text, latent, position): the strongest at a position drawn from the second half of each."""
    draw = np.random.default_rng(SEED)
    for document in documents:
        text = document.text[:300]
        n = subject.prepare([text]).data["input_ids"].shape[1]
        dest = int(draw.integers(n // 2, n))
        acts = subject.run(subject.prepare([text]), str(sae.hook), output=False).acts[str(sae.hook)]
        yield text, int(sae.encode(acts[0, dest : dest + 1])[0].argmax()), dest


def _mean(values: list[float]) -> dict[str, float]:
    """The mean, and its interval by drawing documents anew."""
    sums = Sums()
    sums.add(np.arange(len(values)), total=values, n=np.ones(len(values)))
    low, high = interval(sums, lambda of: of["total"] / of["n"])
    return {"value": round(float(np.mean(values)), 3), "low": round(low, 3), "high": round(high, 3)}


def _heads(subject: Any, sae: Any, documents: list[Any]) -> list[dict[str, Any]]:
    if str(sae.hook) not in Z:
        return []
    rows = []
    for ablation in ("mean", "zero"):
        for line in head_losses(subject, sae, documents, ablation=ablation).to_frame().to_dict("records"):
            rows.append({"score": f"heads, {ablation}"} | line)
    return rows


def _quality(subject: Any, sae: Any, fit: list[Any], documents: list[Any]) -> list[dict[str, Any]]:
    hook = str(sae.hook)
    x = torch.cat([_rows(subject, hook, document) for document in fit])
    mean = x.mean(0)
    codes = sae.encode(torch.cat([_rows(subject, hook, document) for document in documents]))
    l0, dead = float((codes != 0).sum(-1).float().mean()), float((codes == 0).all(0).float().mean())
    axes = torch.linalg.svd(x - mean, full_matrices=False)[2][: round(l0)]

    def projected(z: torch.Tensor, context: Any) -> torch.Tensor:
        return torch.where(context.counted[..., None], (z - mean) @ axes.T @ axes + mean, z)

    arms = {
        "SAE": Reconstruct(sae), "untrained SAE": Reconstruct(untrained(sae, x)),
        f"PCA of {round(l0)}": (hook, projected),
        "mean": MeanAblate(hook, mean), "clean": (),
    }  # fmt: skip
    sums = {name: Sums() for name in arms}
    for number, document in enumerate(documents):
        inputs = subject.prepare([document.text], truncate=True)
        for name, edit in arms.items():
            (loss,), (targets,) = subject.loss(inputs, edit)
            sums[name].add([number], **{"loss": [loss], "n": [targets]})
    rows = []
    for name in list(arms)[:3]:
        own = Sums()
        for each, prefix in ((name, ""), ("mean", "mean_"), ("clean", "clean_")):
            own.add(np.arange(len(documents)), **{f"{prefix}loss": sums[each].of("loss")})

        def recovered(of: Mapping[str, Any]) -> Any:
            return (of["mean_loss"] - of["loss"]) / (of["mean_loss"] - of["clean_loss"])

        value = recovered({key: own.total(key) for key in own.names()})
        low, high = interval(own, recovered)
        found = {"value": round(value, 4), "low": round(low, 4), "high": round(high, 4)}
        rows.append({"score": f"loss recovered, {name}"} | found)
    return [*rows, {"score": "L0", "value": round(l0, 2)}, {"score": "dead", "value": round(dead, 4)}]


def _rows(subject: Any, hook: str, document: Any) -> torch.Tensor:
    inputs = subject.prepare([document.text], truncate=True)
    acts = subject.run(inputs, hook, output=False).acts[hook][0]
    return acts[torch.as_tensor(inputs.counted[0])]


def _of_length(subject: Any, text: str, tokens: int) -> str:
    """As much of a text as has no more than so many tokens."""
    low, high = 1, len(text)
    while low < high:
        middle = (low + high + 1) // 2
        low, high = (middle, high) if len(subject.to_tokens(text[:middle])) <= tokens else (low, middle - 1)
    return text[:low]


if __name__ == "__main__":
    main()

"""Mutual and feature choice (2411.02124): a budget that the rows, or the latents, of a batch share."""

from __future__ import annotations

from collections.abc import Iterable

import numpy as np

import saelab
from promises.report import Report, held_out, score, train
from saelab.corpora import synthetic

SEEDS, STEPS, D_IN, D_SAE, K = 3, 1500, 48, 256, 4


def measure(seeds: Iterable[int]) -> Report:
    report = Report(
        "Budgets that rows or latents share",
        f"Width {D_IN}, 128 features, {D_SAE} latents, k {K}, {STEPS} steps of 512. Uneven: Zipf frequencies "
        "(shift 3), 3.5 active on average, rows of difficulty 0.3 to 1.7; even: equal frequencies, the same "
        "difficulties. All in eval mode, by thresholds. corr: of a row's L0 with its true number of active "
        "features, and with the number that its difficulty lets expect.",
    )

    def config(name, **options):
        return saelab.recipe(name, d_in=D_IN, d_sae=D_SAE, **{"k": K} | options)

    columns = {
        "feature_choice, Zipf": config("feature_choice"),
        "feature_choice, uniform": config("feature_choice", alpha=0.0),
    }
    rows = {
        "topk": config("topk"),
        "topk, k 5": config("topk", k=K + 1),
        "mutual_choice": config("mutual_choice"),
    }
    for seed in seeds:
        for data, zipf, configs in (("uneven", 1.0, {**rows, **columns}), ("even", 0.0, columns)):
            truth = synthetic(D_IN, 128, active=3.5, zipf=zipf, difficulty_spread=0.7, seed=seed)
            test = held_out(truth)
            for name, sae in train(configs, truth.rows(100_000).acts, STEPS, seed).items():
                l0 = (sae.encode(test.acts) != 0).sum(1).numpy()
                score(report, f"{data}: {name}", sae, truth, seed, **_follows(l0, test))
            report.add(f"{data}: the truth", {"L0": test.codes.l0.mean(), **_follows(test.codes.l0, test)})
    _judge(report)
    return report


def _judge(report: Report) -> None:
    mutual, topk = "uneven: mutual_choice", "uneven: topk"
    report.promise(
        "mutual choice: FVU / that of topk", report.of(mutual, "FVU") / report.of(topk, "FVU"), high=0.75
    )
    more = "uneven: topk, k 5"  # which has a larger L0 than mutual choice, as topk has a smaller one
    ratio = report.of(mutual, "FVU") / report.of(more, "FVU")
    report.promise("mutual choice: FVU / that of topk with k 5", ratio, high=0.75)
    report.promise(
        "mutual choice: L0 / that of topk with k 5", report.of(mutual, "L0") / report.of(more, "L0"), high=1
    )
    report.promise("mutual choice: corr(L0, true L0)", report.of(mutual, "corr(L0, true)"), 0.8)
    gain = {
        data: 1
        - report.of(f"{data}: feature_choice, Zipf", "FVU")
        / report.of(f"{data}: feature_choice, uniform", "FVU")
        for data in ("uneven", "even")
    }
    report.promise("feature choice: Zipf columns' FVU is lower by, on Zipf data", gain["uneven"], 0.15)
    report.promise("feature choice: the same on uniform data", gain["even"], high=0.15)
    report.notes.append(
        "The number of features that a row expects is known to nobody but the generator: the true L0 itself "
        f"follows it at {report.of('uneven: the truth', 'corr(L0, expected)').mean():.2f} only."
    )


def _follows(l0: np.ndarray, test) -> dict[str, float]:
    if l0.std() == 0:
        return {}
    return {
        "corr(L0, true)": float(np.corrcoef(l0, test.codes.l0)[0, 1]),
        "corr(L0, expected)": float(np.corrcoef(l0, test.difficulty)[0, 1]),
    }

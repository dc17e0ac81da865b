"""Group bias adaptation (2506.14002): feedback sets how often each latent fires."""

from __future__ import annotations

from collections.abc import Iterable

import saelab
from promises.report import Report, held_out, score, train
from saelab.corpora import synthetic

SEEDS, STEPS, D_IN, N, D_SAE, ACTIVE = 3, 1500, 32, 64, 128, 3
FREQUENCY = ACTIVE / N
TIMES = {"f / 4": 0.25, "f": 1.0, "6 f": 6.0}


def measure(seeds: Iterable[int]) -> Report:
    report = Report(
        "Feedback that sets how often latents fire",
        f"Width {D_IN}, {N} features, {ACTIVE} active in a row with coefficient 1 (each at f = "
        f"{FREQUENCY:.3f}), 20,000 rows, {D_SAE} latents, {STEPS} steps of 512, lr 3e-3, biases moved "
        "every 20 steps at rate 0.02. One group at a multiple of f, or eight groups. in band: latents "
        "that fire on held-out rows, at most 1.3 times as often as their target.",
    )

    def config(high: float, low: float, groups: int) -> saelab.SAEConfig:
        return saelab.recipe(
            "gba", d_in=D_IN, d_sae=D_SAE, groups=groups, high=high, low=low, every=20, rate=0.02,
            b_dec_init="zeros",
        )  # fmt: skip

    configs = {f"gba, target {name}": config(t * FREQUENCY, t * FREQUENCY, 1) for name, t in TIMES.items()}
    configs["gba, eight groups, 0.4 to 0.003"] = config(0.4, 0.003, 8)
    configs["gba, eight groups, 0.9 to 0.25 (wrong)"] = config(0.9, 0.25, 8)
    configs["topk, k 3"] = saelab.recipe("topk", d_in=D_IN, d_sae=D_SAE, k=ACTIVE)
    for seed in seeds:
        truth = synthetic(D_IN, N, active=ACTIVE, exact=True, coefficients=(1.0, 1.0), seed=seed)
        test = held_out(truth)
        for name, sae in train(configs, truth.rows(20_000).acts, STEPS, seed, lr=3e-3).items():
            more = {}
            if name.startswith("gba"):
                share = (sae.encode(test.acts) != 0).float().mean(0)
                more["in band"] = float(((share > 0) & (share <= 1.3 * sae.sparsifier.target)).float().mean())
            score(report, name, sae, truth, seed, **more)

    def found(name):
        return report.of(f"gba, target {name}", ">= .95")

    report.promise("target f: latents in band and alive", report.of("gba, target f", "in band"), 0.95)
    report.promise("target f: features found at .95", found("f"), 0.9)
    for name in ("f / 4", "6 f"):
        report.promise(
            f"target {name}: features found at .95, of those at f", found(name) / found("f"), high=0.5
        )
    wide, wrong = "gba, eight groups, 0.4 to 0.003", "gba, eight groups, 0.9 to 0.25 (wrong)"
    report.notes.append(
        "The paper's claim that groups over a wide range of frequencies need no knowledge of f is not "
        f"reproduced: eight groups find {report.of(wide, '>= .95').mean():.0%} of the features at .95, "
        f"one group at f {found('f').mean():.0%}, topk with the right k "
        f"{report.of('topk, k 3', '>= .95').mean():.0%}. Groups in the wrong range find "
        f"{report.of(wrong, '>= .95').mean():.0%}."
    )
    return report

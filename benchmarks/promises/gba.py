"""Group bias adaptation (2506.14002): feedback sets how often each latent fires."""

from __future__ import annotations

from collections.abc import Iterable

import saelab
from promises.report import Report, held_out, score, train
from saelab.corpora import synthetic

SEEDS, STEPS, D_IN, N, D_SAE, ACTIVE = 3, 1500, 32, 64, 128, 3
FREQUENCY = ACTIVE / N
TIMES = {"f / 4": 0.25, "f": 1.0, "6 f": 6.0}
OFTEN = ", moved every 7 steps"


def measure(seeds: Iterable[int]) -> Report:
    report = Report(
        "Feedback that sets how often latents fire",
        f"Width {D_IN}, {N} features, {ACTIVE} active in a row with coefficient 1 (each at f = "
        f"{FREQUENCY:.3f}), 20,000 rows, {D_SAE} latents, {STEPS} steps of 512, lr 3e-3, biases moved "
        "every 20 steps at rate 0.02 unless said otherwise. One group at a multiple of f, or eight "
        "groups. in band: latents that fire on held-out rows, at most 1.3 times as often as their target.",
    )

    def config(high: float, low: float, groups: int, every: int = 20) -> saelab.SAEConfig:
        return saelab.recipe(
            "gba", d_in=D_IN, d_sae=D_SAE, groups=groups, high=high, low=low, every=every, rate=0.02,
            b_dec_init="zeros",
        )  # fmt: skip

    configs = {}
    for name, times in TIMES.items():
        target = times * FREQUENCY
        configs[f"gba, target {name}"] = config(target, target, 1)
        configs[f"gba, target {name}{OFTEN}"] = config(target, target, 1, every=7)
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

    _judge(report)
    return report


def _judge(report: Report) -> None:
    def found(name):
        return report.of(f"gba, target {name}", ">= .95")

    for often in ("", OFTEN):
        report.promise(
            f"target f{often}: latents in band and alive", report.of(f"gba, target f{often}", "in band"), 0.95
        )
        report.promise(f"target f{often}: features found at .95", found(f"f{often}"), 0.9)
        for name in ("f / 4", "6 f"):
            share = found(f"{name}{often}") / found(f"f{often}")
            report.promise(f"target {name}{often}: features found at .95, of those at f", share, high=0.5)
    report.notes.append(
        "Far below f the biases have not arrived after 75 moves: of the latents with target f / 4 "
        f"{report.of('gba, target f / 4', 'in band').mean():.0%} are in band, with 214 moves "
        f"{report.of(f'gba, target f / 4{OFTEN}', 'in band').mean():.0%}."
    )
    wide, wrong = "gba, eight groups, 0.4 to 0.003", "gba, eight groups, 0.9 to 0.25 (wrong)"
    report.notes.append(
        "The paper's claim that groups over a wide range of frequencies need no knowledge of f is not "
        f"reproduced: eight groups find {report.of(wide, '>= .95').mean():.0%} of the features at .95, "
        f"one group at f {found('f').mean():.0%}, topk with the right k "
        f"{report.of('topk, k 3', '>= .95').mean():.0%}. Groups in the wrong range find "
        f"{report.of(wrong, '>= .95').mean():.0%}."
    )

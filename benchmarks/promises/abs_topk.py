"""AbsTopK (2510.00404): one latent for both poles of an axis."""

from __future__ import annotations

from collections.abc import Iterable

import numpy as np
import torch

import saelab
from promises.report import Report, held_out, score, train
from saelab.analysis import match
from saelab.corpora import synthetic
from saelab.sae.sparsifiers import AbsTopK, TopK

SEEDS, STEPS, D_IN, N, K = 3, 1200, 48, 64, 4


def measure(seeds: Iterable[int]) -> Report:
    report = Report(
        "Both poles of an axis in one latent",
        f"Width {D_IN}, {N} features, {K} active in a row with coefficients of size 0.5 to 1.5, of either "
        f"sign or (unsigned) positive, {STEPS} steps of 512. both signs: latents whose rarer sign makes a "
        "tenth of their firings. sign: of the rows where a feature and its latent are on, those where "
        "the code has the sign of the coefficient, up to the orientation of the latent.",
    )

    def config(name, d_sae):
        return saelab.recipe(name, d_in=D_IN, d_sae=d_sae, k=K)

    arms = {"abs_topk": config("abs_topk", N), "topk": config("topk", N)}
    signed = {**arms, "topk of twice the width": config("topk", 2 * N)}
    for seed in seeds:
        for data, configs in (("signed", signed), ("unsigned", arms)):
            truth = synthetic(D_IN, N, active=K, exact=True, signed=data == "signed", seed=seed)
            test = held_out(truth)
            for name, sae in train(configs, truth.rows(100_000).acts, STEPS, seed).items():
                codes = sae.encode(test.acts).detach().numpy()
                more = {"both signs": _both(codes)}
                if data == "signed":
                    more["sign"] = _agreement(sae, codes, truth, test)
                score(report, f"{data}: {name}", sae, truth, seed, **more)

    ours = report.of("signed: abs_topk", "FVU")
    report.promise("FVU / that of topk of equal width", ours / report.of("signed: topk", "FVU"), high=0.25)
    wide = report.of("signed: topk of twice the width", "FVU")
    report.promise("FVU / that of topk of double width", ours / wide, high=1.1)
    report.promise("latents with both signs, signed data", report.of("signed: abs_topk", "both signs"), 0.9)
    report.promise("the same, unsigned data", report.of("unsigned: abs_topk", "both signs"), high=0.15)
    report.promise("codes with the sign of the truth", report.of("signed: abs_topk", "sign"), 0.9)
    report.promise(
        "largest difference from topk of [u, -u] folded back", [_folded(s) for s in range(3)], high=0
    )
    return report


def _both(codes: np.ndarray) -> float:
    up, down = (codes > 0).sum(0), (codes < 0).sum(0)
    alive = up + down > 0
    return float((np.minimum(up, down)[alive] >= 0.1 * (up + down)[alive]).mean())


def _agreement(sae, codes: np.ndarray, truth, test) -> float:
    W_dec = sae.W_dec.detach().numpy()
    latents = match(W_dec, truth.directions, either_sign=True).latents
    way = np.sign((W_dec[latents] * truth.directions).sum(1))
    seen, true = codes[:, latents] * way, test.codes.dense()
    on = (seen != 0) & (true != 0)
    return float((seen * true > 0)[on].mean())


def _folded(seed: int) -> float:
    u = torch.randn(2_000, 300, generator=torch.Generator().manual_seed(seed))
    both = TopK(9)(torch.cat([u, -u], 1).relu(), u, None)
    return float((AbsTopK(9)(u, u, None) - (both[:, :300] - both[:, 300:])).abs().max())

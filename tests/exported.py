"""Writes the latents of a feature store as neuronpedia.org exports them, for tests of what reads that."""

from __future__ import annotations

import gzip
import json
from pathlib import Path

import numpy as np

MODEL, SOURCE = "tiny-lm", "2-res-test"
PLACES = 3
"""Figures are rounded so."""


def batch(folder, number, rows, packed=True):
    """One batch of lines, as export-data.py writes and packs it."""
    folder.mkdir(parents=True, exist_ok=True)
    data = "".join(json.dumps(row) + "\n" for row in rows).encode()
    path = folder / f"batch-{number}.jsonl{'.gz' if packed else ''}"
    path.write_bytes(gzip.compress(data, 5, mtime=0) if packed else data)
    return path


def feature(latent, **other):
    """A line of features/, of a latent that never fired unless `other` says more."""
    lists = (
        "freq_hist_data_bar_heights", "freq_hist_data_bar_values", "logits_hist_data_bar_heights",
        "logits_hist_data_bar_values", "neuron_alignment_indices", "neuron_alignment_l1",
        "neuron_alignment_values", "neg_str", "neg_values", "pos_str", "pos_values", "topkCosSimIndices",
        "topkCosSimValues", "vector",
    )  # fmt: skip
    return {
        "modelId": MODEL, "layer": SOURCE, "index": str(latent), "maxActApprox": 0.0, "creatorId": "clk",
        "frac_nonzero": 0.0, **{name: [] for name in lists}, "sourceSetName": SOURCE.partition("-")[2],
        "vectorLabel": None, "hookName": None, "vectorDefaultSteerStrength": None, "hasVector": False,
    } | other  # fmt: skip


def window(latent, tokens, values, **other):
    """A line of activations/."""
    most = max(values, default=0)
    return {
        "id": f"clz{latent}", "modelId": MODEL, "layer": SOURCE, "index": str(latent), "creatorId": "clk",
        "dataSource": None, "tokens": tokens, "maxValue": most, "minValue": min(values, default=0),
        "values": values, "maxValueTokenIndex": values.index(most) if values else 0, "dfaValues": [],
        "dfaMaxValue": None, "dfaTargetIndex": None, "binContains": -1, "binMin": -1, "binMax": most,
    } | other  # fmt: skip


def explanation(latent, text, model="gpt-4o-mini"):
    """A line of explanations/."""
    return {
        "id": f"cle{latent}", "modelId": MODEL, "layer": SOURCE, "index": str(latent), "authorId": "clk",
        "description": text, "embedding": None, "typeName": "oai_token-act-pair",
        "explanationModelName": model,
    }  # fmt: skip


def export(store, folder: Path, latents, lenses=None, *, vectors=False, labels=None, per_file=40):
    """The latents of a store with full codes as an export at `folder`, batches in no order.

    Values are rounded to three places and shares to five, as SAEDashboard does.
    """
    features, windows = [], []
    for j in latents:
        values = store.codes(j)[1]
        heights, edges = np.histogram(values, 50) if len(values) else (np.zeros(0), np.zeros(1))
        lens = None if lenses is None else lenses.of(j)
        sides = {"pos": lens.top, "neg": lens.bottom} if lens else {}
        features.append(
            feature(
                j,
                frac_nonzero=round(len(values) / store.n_rows, 5),
                maxActApprox=_short(values.max(initial=0)),
                freq_hist_data_bar_heights=[int(n) for n in heights],
                freq_hist_data_bar_values=[_short(x) for x in (edges[1:] + edges[:-1]) / 2],
                **{f"{side}_str": [token for token, _ in pairs] for side, pairs in sides.items()},
                **{f"{side}_values": [_short(v) for _, v in pairs] for side, pairs in sides.items()},
                **({"vector": store.directions[j].tolist(), "hasVector": True} if vectors else {}),
                hookName=str(store.hook) if vectors else None,
            )
        )
        for kind in ("top", "bottom", "quantile"):
            for e in store.examples(j, 20, kind):
                bins = {"binMin": e.stratum, "binMax": e.stratum + 1, "binContains": 0.1}
                more = bins if kind == "quantile" else {}
                more |= {"qualifyingTokenIndex": e.position - e.start}
                own = [_short(v) for v in e.values]
                lowest = {"dataSource": "bottom"} if kind == "bottom" else {}
                windows.append(window(j, e.names, own, **more, **lowest))
    for kind, rows in (("features", features), ("activations", windows)):
        size = per_file * (1 if kind == "features" else 30)
        cuts = range(0, max(len(rows), 1), size)
        for number, first in enumerate(reversed(cuts)):
            batch(folder / kind, number, rows[first : first + size])
    for name, own in (labels or {}).items():
        batch(folder / name, 0, own)
    said = {"id": SOURCE, "modelId": MODEL, "num_prompts": store.n_rows, "num_tokens_in_prompt": 1}
    (folder / "source.jsonl").write_text(json.dumps(said) + "\n")
    (folder / "model.jsonl").write_text(json.dumps({"id": MODEL, "layers": 4}) + "\n")
    return folder


def _short(value):
    return round(float(value), PLACES)

"""A small folder as HeadVis reads it and neuronpedia.org exports it, for tests."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np

LAYERS, HEADS = 2, 2
TOKENS = ["<bos>", "When", " Ro", "sa", " saw", " Ro", "sa", "."]


def pattern(seed: int, sharp: float = 1.0) -> np.ndarray:
    """[n n]: a causal pattern."""
    n = len(TOKENS)
    raw = np.exp(sharp * np.random.default_rng(seed).standard_normal((n, n))) * np.tri(n)
    return raw / raw.sum(1, keepdims=True)


def sequence(number: int, interval: int, own: np.ndarray) -> dict[str, Any]:
    """One sequence of a file: the weights of at least 0.05."""
    n = len(own)
    at = np.flatnonzero(own.ravel() >= 0.05)
    inner = np.tril(own, -1)[1:, 1:]
    return {
        "sequence_id": number, "interval": interval, "tokens": TOKENS, "seq_len": n,
        "attention_indices": at.tolist(), "attention_values": own.ravel()[at].round(4).tolist(),
        "max_activation": round(float(inner.max()), 4),
    }  # fmt: skip


def contents() -> dict[str, Any]:
    """Path -> JSON of the whole folder; the head 0.1 is not among them."""
    known = [[0, 0], [1, 0], [1, 1]]
    metrics = ("self_attention_score", "prev_token_score", "pattern_entropy", "qk_distance_variance")
    rows = [
        {"layer": i, "head": h, **{name: 0.1 * k + i + 0.5 * h for k, name in enumerate(metrics)}}
        for i, h in known
    ]
    rows[1]["pattern_entropy"] = None
    config = {
        "model_name": "a/model", "np_model_id": "model", "dataset_name": "a/text", "heads": known,
        "n_layers": LAYERS, "n_heads": HEADS, "n_intervals": 3, "metrics": list(metrics),
        "metric_descriptions": {"prev_token_score": "Mean attention to the token before."},
        "head_data_pattern": "L{layer}H{head}.json", "has_umap": False, "umap_heads": [],
        "pipeline_config": {"n_sequences": 2000, "actual_sequences_processed": 1998},
    }  # fmt: skip
    found: dict[str, Any] = {"config.json": config, "scatter_data.json": rows, "server_config.json": {}}
    for i, h in known:
        own = [sequence(10 * s + h, 1 + s % 3, pattern(100 * i + 10 * h + s, 1 + s % 3)) for s in range(7)]
        counts = {"bin_edges": np.linspace(0, 1, 51).round(4).tolist(), "bin_values": list(range(50))}
        found[f"heads/L{i}H{h}.json"] = {
            "sequences": own, "histogram": counts, "statistics": {"n_samples": len(own)},
            "top_query_tokens": [{"token": " Ro", "weight": 3.5}], "top_key_tokens": [],
            "qk_distance_histogram": {"bin_edges": [0, 1, 2], "bin_values": [1.0, 2.0]},
        }  # fmt: skip
    found["attributions/manifest.json"] = {}
    return found


def written(folder: Path, files: dict[str, Any] | None = None) -> Path:
    """The folder, with what it holds written."""
    for name, data in (contents() if files is None else files).items():
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(json.dumps(data))
    return folder

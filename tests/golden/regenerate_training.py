"""Write training.json, the numbers of a tiny deterministic run: `python tests/golden/regenerate_training.py`.

Run it only when training is meant to change, and say in the commit why the numbers moved.
"""

from __future__ import annotations

import json
import math
from pathlib import Path

import torch

from saelab.sae import recipe
from saelab.training import Run, train

FILE = Path(__file__).with_name("training.json")
CONFIGS = {
    "topk": recipe("topk", d_in=12, d_sae=40, k=3, dead_after=300),
    "relu": recipe("relu", d_in=12, d_sae=40, l1=0.05),
}


def rows() -> torch.Tensor:
    """[1000 12] of plain arithmetic, so that no random generator's version matters."""
    i = torch.arange(1000, dtype=torch.float64)[:, None]
    j = torch.arange(12, dtype=torch.float64)[None]
    waves = (
        torch.sin(0.37 * i * (j + 1)) * (torch.cos(0.011 * i * j) > 0.3) + 0.2 * torch.cos(i * math.e) + 0.5
    )
    return waves.float()


def run(name: str) -> Run:
    """The run whose numbers are kept: 40 steps, long enough for every loss, rule and schedule to act."""
    return train(CONFIGS[name], rows(), steps=40, batch_size=50, seed=11, progress=False, log_every=8)


def numbers(result: Run) -> dict[str, object]:
    """What is kept of a run."""
    sae, x = result.sae, rows()[:64]
    with torch.no_grad():
        out = sae(x)
    return {
        "history": [{k: v for k, v in r._asdict().items() if v is not None} for r in result.history],
        "weights": {name: float(t.double().norm()) for name, t in sae.state_dict().items()},
        "mean_code": float(out.codes.mean()),
        "x_hat": [round(float(v), 6) for v in out.x_hat[5]],
    }


def main() -> None:
    """Write the file anew."""
    FILE.write_text(json.dumps({name: numbers(run(name)) for name in CONFIGS}, indent=1) + "\n")


if __name__ == "__main__":
    main()

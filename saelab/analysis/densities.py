"""How often latents fire, as a histogram."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    import pandas as pd


def densities(fired: Mapping[str, np.ndarray], n_rows: int) -> pd.DataFrame:
    """Latents by the share of rows on which they fire, in bins of a quarter of a decade.

    Args:
        fired: Whose they are -> int64 [d_sae], rows where each is not 0.
        n_rows: Of how many.

    Returns:
        One row a bin: `from` (not in it) and `to`, shares of the rows, and how many latents of each; the
        first bin, 0 to 0, has those that never fired. Bins below the rarest are left out.
    """
    import pandas as pd
    import torch

    from saelab.training.live import binned

    found = {name: binned(torch.from_numpy(each / n_rows)) for name, each in fired.items()}
    one = next(iter(found.values()))
    edges = 10.0 ** (one["low"] + np.arange(len(one["counts"]) + 1) / one["per_decade"])
    counts = np.array([each["counts"] for each in found.values()]).reshape(len(found), -1)
    held = np.flatnonzero(counts.any(0))
    first = int(held[0]) if len(held) else counts.shape[1]
    columns = {"from": np.r_[0.0, edges[first:-1]], "to": np.r_[0.0, edges[first + 1 :]]}
    for name, own in zip(found, counts, strict=True):
        columns[name] = np.r_[found[name]["below"], own[first:]]
    return pd.DataFrame(columns)


__all__ = ["densities"]

"""What searching and comparing ask of a feature store."""

from __future__ import annotations

from pathlib import Path
from typing import Any, Protocol

import numpy as np
import pandas as pd

from saelab.stores.records import LatentStats


class Latents(Protocol):
    """The latents of an SAE over a corpus: `saelab.stores.FeatureStore`."""

    folder: Path
    manifest: dict[str, Any]
    n_latents: int
    n_rows: int
    kept: str

    @property
    def directions(self) -> np.ndarray: ...
    @property
    def example_index(self) -> Any: ...
    def query(self, sql: str, values: Any = None, format: str = "pandas") -> Any: ...
    def latent(self, latent: int) -> LatentStats: ...
    def latents(self) -> pd.DataFrame: ...
    def labels(self) -> pd.DataFrame: ...

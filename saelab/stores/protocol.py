"""What searching and comparing ask of a feature store."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

from saelab.stores.records import LatentStats

if TYPE_CHECKING:
    import pandas as pd


class Latents(Protocol):
    """The latents of an SAE over a corpus: `saelab.stores.FeatureStore`."""

    folder: Path
    manifest: dict[str, Any]
    n_latents: int
    n_rows: int
    kept: str
    directions: Any
    """float16 [n_latents d_out]"""
    example_index: Any
    """`saelab.stores.search.ExampleIndex`"""

    def query(self, sql: str, values: Any = None, format: str = "pandas") -> Any: ...
    def latent(self, latent: int) -> LatentStats: ...
    def latents(self) -> pd.DataFrame: ...
    def labels(self) -> pd.DataFrame: ...

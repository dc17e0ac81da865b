"""Stores: folders of files with a manifest, written whole or not at all. Opening a feature store needs no
torch.
"""

from saelab.stores.activation_writer import ActivationWriter
from saelab.stores.activations import ActivationStore
from saelab.stores.features import FeatureStore
from saelab.stores.merging import merge
from saelab.stores.migration import migrate
from saelab.stores.records import DocumentRecord, Example, LatentStats, RowRecord

__all__ = [
    "ActivationStore",
    "ActivationWriter",
    "DocumentRecord",
    "Example",
    "FeatureStore",
    "LatentStats",
    "RowRecord",
    "merge",
    "migrate",
]

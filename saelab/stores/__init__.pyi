from .activation_writer import ActivationWriter
from .activations import ActivationStore
from .features import FeatureStore
from .merging import merge
from .migration import migrate
from .neuronpedia_store import from_neuronpedia
from .records import DocumentRecord, Example, LatentStats, RowRecord

__all__ = [
    "ActivationStore",
    "ActivationWriter",
    "DocumentRecord",
    "Example",
    "FeatureStore",
    "LatentStats",
    "RowRecord",
    "from_neuronpedia",
    "merge",
    "migrate",
]

"""Running a subject over a corpus: its activations to a store, or with an SAE its latents to an index."""

from saelab.harvesting.acts import harvest
from saelab.harvesting.index import index

__all__ = ["harvest", "index"]

"""Files of other libraries: which format a folder is of, loading from it and saving to it."""

from saelab.formats.listing import Listed, list_saes
from saelab.formats.reading import TensorInfo
from saelab.formats.registry import Sniffed, load_layers, load_sae, names, options, save_sae, sniff

__all__ = [
    "Listed",
    "Sniffed",
    "TensorInfo",
    "list_saes",
    "load_layers",
    "load_sae",
    "names",
    "options",
    "save_sae",
    "sniff",
]

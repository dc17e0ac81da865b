"""Files of other libraries: which format a folder is of, loading from it and saving to it."""

from saelab.formats.reading import TensorInfo
from saelab.formats.registry import Sniffed, load_sae, names, save_sae, sniff

__all__ = ["Sniffed", "TensorInfo", "load_sae", "names", "save_sae", "sniff"]

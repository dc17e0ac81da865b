"""Pickles: files of torch.save and of pickle.dump, read without running anything that they name."""

from saelab.formats.pickled.files import torch_file

__all__ = ["torch_file"]

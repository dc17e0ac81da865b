"""Sparse autoencoders: one class, built of parts; named architectures as data."""

from saelab.sae.kernels import Sparse
from saelab.sae.metrics import FVU, fvu
from saelab.sae.model import SAE, Forward
from saelab.sae.recipes import SAEConfig, recipe, recipe_options, recipes

__all__ = ["FVU", "SAE", "Forward", "SAEConfig", "Sparse", "fvu", "recipe", "recipe_options", "recipes"]

"""Sparse autoencoders: one class, built of parts; named architectures as data."""

from saelab.sae import architectures as architectures  # registers the recipes
from saelab.sae import classical as classical
from saelab.sae import crosslayer as crosslayer
from saelab.sae import recent as recent
from saelab.sae import transcoders as transcoders
from saelab.sae.config import Option, Recipe, SAEConfig, recipe, recipe_options, recipes, register
from saelab.sae.kernels import Sparse
from saelab.sae.metrics import FVU, fvu
from saelab.sae.model import SAE
from saelab.sae.network import Forward

__all__ = [
    "FVU",
    "SAE",
    "Forward",
    "Option",
    "Recipe",
    "SAEConfig",
    "Sparse",
    "fvu",
    "recipe",
    "recipe_options",
    "recipes",
    "register",
]

"""Attributes of entities, swapped by few latents; and latents that are taken away for good."""

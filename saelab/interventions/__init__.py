"""Edits of a subject's activations: each names its hook point, composes by order, and is plain JSON data."""

from saelab.interventions.reconstruction import MeanAblate, Reconstruct, Replace

__all__ = ["MeanAblate", "Reconstruct", "Replace"]

"""The views: what a browser shows of results. They ask for what they show and never hold a model."""

from saelab.widgets.base import Selection, View
from saelab.widgets.card import CardView
from saelab.widgets.export import Lines, Table, Text, Views, page
from saelab.widgets.features import FeaturesView
from saelab.widgets.tokens import TokensView

__all__ = [
    "CardView",
    "FeaturesView",
    "Lines",
    "Selection",
    "Table",
    "Text",
    "TokensView",
    "View",
    "Views",
    "page",
]

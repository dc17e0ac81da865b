"""The views: what a browser shows of results. They ask for what they show and never hold a model."""

from saelab.widgets.base import View
from saelab.widgets.card import CardView
from saelab.widgets.densities import DensitiesView
from saelab.widgets.export import Lines, Table, Text, Views, page
from saelab.widgets.features import FeaturesView
from saelab.widgets.questions import Ask, Shared
from saelab.widgets.sample import SampleView
from saelab.widgets.selection import Selection
from saelab.widgets.source import Made
from saelab.widgets.wire import Packed

__all__ = [
    "Ask",
    "CardView",
    "DensitiesView",
    "FeaturesView",
    "LabViews",
    "Lines",
    "Made",
    "Packed",
    "SampleView",
    "Selection",
    "Shared",
    "Table",
    "Text",
    "View",
    "Views",
    "page",
]


class LabViews:
    """The views that a Lab makes, each as a method of it."""

    show = Made(SampleView.of)
    features = Made(FeaturesView.of)
    feature = Made(CardView.of)
    densities = Made(DensitiesView.of)

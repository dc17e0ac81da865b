"""The views: what a browser shows of results. They ask for what they show and never hold a model."""

from saelab.widgets.base import View as View
from saelab.widgets.blindspots import BlindspotsView as BlindspotsView
from saelab.widgets.board import BoardView as BoardView
from saelab.widgets.card import CardView as CardView
from saelab.widgets.circuit import CircuitView as CircuitView
from saelab.widgets.compare import CompareView as CompareView
from saelab.widgets.corpus import CorpusView as CorpusView
from saelab.widgets.densities import DensitiesView as DensitiesView
from saelab.widgets.erase import EraseView as EraseView
from saelab.widgets.export import Lines as Lines
from saelab.widgets.export import Table as Table
from saelab.widgets.export import Text as Text
from saelab.widgets.export import Views as Views
from saelab.widgets.export import page as page
from saelab.widgets.features import FeaturesView as FeaturesView
from saelab.widgets.heads import HeadsView as HeadsView
from saelab.widgets.map import MapView as MapView
from saelab.widgets.questions import Ask as Ask
from saelab.widgets.questions import Shared as Shared
from saelab.widgets.report import ReportView as ReportView
from saelab.widgets.sample import SampleView as SampleView
from saelab.widgets.selection import Selection as Selection
from saelab.widgets.source import Made
from saelab.widgets.steer import SteerView as SteerView
from saelab.widgets.watch import WatchView as WatchView
from saelab.widgets.wire import Packed as Packed


class LabViews:
    """The views that a Lab makes, each as a method of it."""

    show = Made(SampleView.of)
    features = Made(FeaturesView.of)
    feature = Made(CardView.of)
    corpus = Made(CorpusView.of)
    densities = Made(DensitiesView.of)
    map = Made(MapView.of)
    steer = Made(SteerView.of)
    erase = Made(EraseView.of)
    heads = Made(HeadsView.of)
    blindspots = Made(BlindspotsView.of)
    board = Made(BoardView.of)
    compare = Made(CompareView.of)
    circuit = Made(CircuitView.of)
    report = Made(ReportView.of)

"""Training: losses, rules, and one trainer for every recipe."""

from saelab.training.adapters import TensorBoard, WandB
from saelab.training.arguments import learning_rate
from saelab.training.estimates import Estimate, estimate
from saelab.training.losses import LOSSES
from saelab.training.rules import RULES
from saelab.training.run import Record, Run, Settings
from saelab.training.stream import stream
from saelab.training.trainer import Event, train

__all__ = [
    "LOSSES",
    "RULES",
    "Estimate",
    "Event",
    "Record",
    "Run",
    "Settings",
    "TensorBoard",
    "WandB",
    "estimate",
    "learning_rate",
    "stream",
    "train",
]

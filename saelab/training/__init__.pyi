from .adapters import TensorBoard, WandB
from .arguments import learning_rate
from .classical import classical, with_codes
from .estimates import Estimate, estimate
from .lora import Adapted, adapt
from .losses import LOSSES
from .moving import Optimizer, Schedule, Whitening
from .rules import RULES
from .run import Origin, Record, Run, Settings
from .starting import Start
from .streaming import stream
from .through import Objective, end_to_end
from .trainer import Event, train

__all__ = [
    "LOSSES",
    "RULES",
    "Adapted",
    "Estimate",
    "Event",
    "Objective",
    "Optimizer",
    "Origin",
    "Record",
    "Run",
    "Schedule",
    "Settings",
    "Start",
    "TensorBoard",
    "WandB",
    "Whitening",
    "adapt",
    "classical",
    "end_to_end",
    "estimate",
    "learning_rate",
    "stream",
    "train",
    "with_codes",
]

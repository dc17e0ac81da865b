from .concepts import Concept, Concepts, concepts
from .evals import Report, Scores, evaluate
from .frontier import Frontier, Point, frontier
from .labels import row_labels
from .latents import card, cards, examples, latent_table
from .logits import direct_logits, logit_lens
from .norms import NormDiagnostics, norms
from .recovery import Match, Recovery, RecoveryScores, match, recovery
from .results import (
    Examples,
    FeatureCard,
    LatentStats,
    LatentTable,
    LogitLens,
    SampleCodes,
)
from .samples import sample_codes
from .searches import Found, search
from .special import SpecialTokens, TokenScores, special_tokens
from .steering.gate import GateCurve, calibrate_gate
from .steering.select import select_latents
from .steering.selected import Selected

__all__ = [
    "Concept",
    "Concepts",
    "Examples",
    "FeatureCard",
    "Found",
    "Frontier",
    "GateCurve",
    "LatentStats",
    "LatentTable",
    "LogitLens",
    "Match",
    "NormDiagnostics",
    "Point",
    "Recovery",
    "RecoveryScores",
    "Report",
    "SampleCodes",
    "Scores",
    "Selected",
    "SpecialTokens",
    "TokenScores",
    "calibrate_gate",
    "card",
    "cards",
    "concepts",
    "direct_logits",
    "evaluate",
    "examples",
    "frontier",
    "latent_table",
    "logit_lens",
    "match",
    "norms",
    "recovery",
    "row_labels",
    "sample_codes",
    "search",
    "select_latents",
    "special_tokens",
]

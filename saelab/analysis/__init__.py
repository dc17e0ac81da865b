"""Pure functions from subjects, SAEs and stores to frozen results. Widgets show these; people can too."""

from saelab.analysis.concepts import Concept, Concepts, concepts
from saelab.analysis.evals import Report, Scores, evaluate
from saelab.analysis.frontier import Frontier, Point, frontier
from saelab.analysis.labels import row_labels
from saelab.analysis.latents import card, cards, examples, latent_table
from saelab.analysis.logits import direct_logits, logit_lens
from saelab.analysis.norms import NormDiagnostics, norms
from saelab.analysis.recovery import Match, Recovery, RecoveryScores, match, recovery
from saelab.analysis.results import (
    Examples,
    FeatureCard,
    LatentStats,
    LatentTable,
    LogitLens,
    SampleCodes,
)
from saelab.analysis.samples import sample_codes, search
from saelab.analysis.special import SpecialTokens, TokenScores, special_tokens

__all__ = [
    "Concept",
    "Concepts",
    "Examples",
    "FeatureCard",
    "Frontier",
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
    "SpecialTokens",
    "TokenScores",
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
    "special_tokens",
]

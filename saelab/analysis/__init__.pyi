from .attention.direct import dfa, head_attribution, head_readings
from .attention.effects import edge_changes, head_effects, head_losses
from .attention.examples import head_examples
from .attention.families import families, head_roles
from .attention.headvis import read_headvis
from .attention.induction import induction_scores, prefix_curves
from .attention.recursive import recursive_dfa
from .attention.through import edge_effects
from .circuits.codes import HeadCodes, head_codes, important
from .circuits.edges import edge_attribution, path_patching
from .circuits.graph_files import read_graph
from .circuits.graphs import AttributionGraph, GraphNode
from .circuits.measures import CodeTest, Roc
from .circuits.nodes import HeadEdge, Node, head_edges
from .circuits.patching import activation_patching, attribution_patching
from .circuits.pruning import circuit
from .circuits.results import Agreement, Circuit, Effects, agreement
from .circuits.tasks import Task, prompt_task
from .circuits.tracing import attribution_graph
from .circuits.truth import Truth, freeze, frozen, read_truths
from .compared import Compared, compare
from .concepts import Concept, Concepts, concepts
from .dark.measuring import dark_matter
from .dark.pursuit import gradient_pursuit, nonnegative_least_squares, orthogonal_matching_pursuit
from .dark.results import DarkMatter, ErrorParts, Losses
from .dark.scaling import ErrorScaling, Pair, error_scaling
from .differences import sample_difference
from .evals import evaluate
from .frontier import Frontier, Point, frontier
from .labels import row_labels
from .latents import card, cards, examples, latent_table
from .logits import direct_logits, logit_lens
from .maps.background import MapJob, MapProgress, start_map
from .maps.looking import LatentColumn, latent_column
from .maps.making import latent_map
from .maps.results import LatentMap
from .measures import (
    code_correlation,
    collinearity,
    energy,
    explained_variance,
    frac_variance_explained,
    frechet,
    hoyer,
    wasserstein,
)
from .norms import NormDiagnostics, norms
from .predictions import predictions
from .recovery import Match, Recovery, RecoveryScores, match, recovery
from .relatives import relatives
from .report import Report, Scores
from .reports import Reports, read_report
from .results import (
    Changed,
    Difference,
    Examples,
    FeatureCard,
    LatentStats,
    LatentTable,
    Layer,
    LogitLens,
    Predictions,
    SampleCodes,
)
from .results_attention import (
    DFA,
    Branch,
    Edge,
    EdgeChanges,
    EdgeEffects,
    HeadAttribution,
    HeadEffects,
    HeadLosses,
    RecursiveDFA,
)
from .results_heads import HeadExamples, HeadMeasure, HeadSequence, OneHead, TokenShare
from .results_induction import Families, HeadRoles, InductionScores, PrefixCurves, Proxy
from .results_near import Relatives
from .saebench import read_saebench, write_saebench
from .samples import sample_codes
from .searches import Found, search
from .special import SpecialTokens, TokenScores, special_tokens
from .steering.effects import dose_response, effect, side_effects
from .steering.gate import GateCurve, calibrate_gate
from .steering.results import Arm, Effect, Figure, TokenShift
from .steering.select import select_latents
from .steering.selected import Choice, Contrast, Selected
from .steering.texts import distinct_n, lexicon_count, repetition
from .suites.absorption import Absorption
from .suites.classical import Classical
from .suites.probing import Probing
from .suites.ravel import RAVEL
from .suites.scr import SCR
from .suites.splitting import Splitting
from .suites.stability import Stability
from .suites.tpp import TPP
from .suites.unlearning import Unlearning
from .supervised.comparing import against_supervised
from .supervised.dictionaries import SupervisedDictionary, supervised_dictionary
from .supervised.f1 import AttributeF1, attribute_f1
from .supervised.results import AgainstSupervised, Edited, Stood
from .supervised.tasks import AttributeTask, Location, attribute_task
from .supervised.toys import occlusion, over_splitting
from .vision.agreement import GeneratorAgreement, generator_agreement
from .vision.attributes import Attributes, attributes
from .vision.blindspots import blindspots
from .vision.codes import DocumentCodes, document_codes
from .vision.heat import patch_boxes, patch_map
from .vision.ontology import Ontology, ontology
from .vision.ood import OOD, ood
from .vision.spots import Blindspots, Neighbours, Spots
from .windows import drawn_examples, whole_document

__all__ = [
    "DFA",
    "OOD",
    "RAVEL",
    "SCR",
    "TPP",
    "Absorption",
    "AgainstSupervised",
    "Agreement",
    "Arm",
    "AttributeF1",
    "AttributeTask",
    "Attributes",
    "AttributionGraph",
    "Blindspots",
    "Branch",
    "Changed",
    "Choice",
    "Circuit",
    "Classical",
    "CodeTest",
    "Compared",
    "Concept",
    "Concepts",
    "Contrast",
    "DarkMatter",
    "Difference",
    "DocumentCodes",
    "Edge",
    "EdgeChanges",
    "EdgeEffects",
    "Edited",
    "Effect",
    "Effects",
    "ErrorParts",
    "ErrorScaling",
    "Examples",
    "Families",
    "FeatureCard",
    "Figure",
    "Found",
    "Frontier",
    "GateCurve",
    "GeneratorAgreement",
    "GraphNode",
    "HeadAttribution",
    "HeadCodes",
    "HeadEdge",
    "HeadEffects",
    "HeadExamples",
    "HeadLosses",
    "HeadMeasure",
    "HeadRoles",
    "HeadSequence",
    "InductionScores",
    "LatentColumn",
    "LatentMap",
    "LatentStats",
    "LatentTable",
    "Layer",
    "Location",
    "LogitLens",
    "Losses",
    "MapJob",
    "MapProgress",
    "Match",
    "Neighbours",
    "Node",
    "NormDiagnostics",
    "OneHead",
    "Ontology",
    "Pair",
    "Point",
    "Predictions",
    "PrefixCurves",
    "Probing",
    "Proxy",
    "Recovery",
    "RecoveryScores",
    "RecursiveDFA",
    "Relatives",
    "Report",
    "Reports",
    "Roc",
    "SampleCodes",
    "Scores",
    "Selected",
    "SpecialTokens",
    "Splitting",
    "Spots",
    "Stability",
    "Stood",
    "SupervisedDictionary",
    "Task",
    "TokenScores",
    "TokenShare",
    "TokenShift",
    "Truth",
    "Unlearning",
    "activation_patching",
    "against_supervised",
    "agreement",
    "attribute_f1",
    "attribute_task",
    "attributes",
    "attribution_graph",
    "attribution_patching",
    "blindspots",
    "calibrate_gate",
    "card",
    "cards",
    "circuit",
    "code_correlation",
    "collinearity",
    "compare",
    "concepts",
    "dark_matter",
    "dfa",
    "direct_logits",
    "distinct_n",
    "document_codes",
    "dose_response",
    "drawn_examples",
    "edge_attribution",
    "edge_changes",
    "edge_effects",
    "effect",
    "energy",
    "error_scaling",
    "evaluate",
    "examples",
    "explained_variance",
    "families",
    "frac_variance_explained",
    "frechet",
    "freeze",
    "frontier",
    "frozen",
    "generator_agreement",
    "gradient_pursuit",
    "head_attribution",
    "head_codes",
    "head_edges",
    "head_effects",
    "head_examples",
    "head_losses",
    "head_readings",
    "head_roles",
    "hoyer",
    "important",
    "induction_scores",
    "latent_column",
    "latent_map",
    "latent_table",
    "lexicon_count",
    "logit_lens",
    "match",
    "nonnegative_least_squares",
    "norms",
    "occlusion",
    "ontology",
    "ood",
    "orthogonal_matching_pursuit",
    "over_splitting",
    "patch_boxes",
    "patch_map",
    "path_patching",
    "predictions",
    "prefix_curves",
    "prompt_task",
    "read_graph",
    "read_headvis",
    "read_report",
    "read_saebench",
    "read_truths",
    "recovery",
    "recursive_dfa",
    "relatives",
    "repetition",
    "row_labels",
    "sample_codes",
    "sample_difference",
    "search",
    "select_latents",
    "side_effects",
    "special_tokens",
    "start_map",
    "supervised_dictionary",
    "wasserstein",
    "whole_document",
    "write_saebench",
]

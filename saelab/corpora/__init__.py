"""What subjects are run on: texts (a user's own out of lists, files or data sets, the labelled synthetic
world, English from the standard library), images (a user's own, labelled drawings); and activations whose
features are known, to try SAEs on."""

from saelab.corpora.documents import Corpus, Document, Span, as_corpus, dialogues, samples, token_labels
from saelab.corpora.facts import Fact, relation_facts, scene_facts
from saelab.corpora.figures import ATTRIBUTES as SHAPE_ATTRIBUTES
from saelab.corpora.figures import PARENTS as SHAPE_PARENTS
from saelab.corpora.images import images
from saelab.corpora.natural import natural
from saelab.corpora.shapes import shape_mask, shapes
from saelab.corpora.sources import hub, jsonl, parquet, text
from saelab.corpora.synthetic import Synthetic, SyntheticRows, synthetic
from saelab.corpora.world import world
from saelab.corpora.world_prompts import AttributedPrompts, attributed_prompts

__all__ = [
    "SHAPE_ATTRIBUTES",
    "SHAPE_PARENTS",
    "AttributedPrompts",
    "Corpus",
    "Document",
    "Fact",
    "Span",
    "Synthetic",
    "SyntheticRows",
    "as_corpus",
    "attributed_prompts",
    "dialogues",
    "hub",
    "images",
    "jsonl",
    "natural",
    "parquet",
    "relation_facts",
    "samples",
    "scene_facts",
    "shape_mask",
    "shapes",
    "synthetic",
    "text",
    "token_labels",
    "world",
]

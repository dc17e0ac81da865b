"""Qwen Scope: one file a layer, `layer3.sae.pt`. The k largest of x W^T + c, then relu; b_dec is not
subtracted.

W_enc [d_sae d_in] and W_dec [d_in d_sae] bear the names of SAELens and lie the other way round, which shapes
do not tell where d_in = d_sae: the file's name does. k is in the repository's name alone, ...-L0_50 (read
through SAELens 6.54.12).
"""

from __future__ import annotations

import re

from saelab.formats.layout import SAME, done, positive, take
from saelab.formats.plain import Plain
from saelab.formats.settings import seen
from saelab.formats.source import Found, Source
from saelab.formats.vocabulary import agree
from saelab.sae import SAE
from saelab.types import HookPoint

NAME = "qwen_scope"
OPTIONS = {"k": "Codes of a row, where no folder above is named as the repository is (...-L0_50)."}

_FILE = re.compile(r"layer(\d{1,4})\.sae\.pt")


def find(source: Source) -> Found | None:
    """layer{n}.sae.pt with W_enc, W_dec, b_enc and b_dec."""
    if source.weights is None or not _FILE.fullmatch(source.weights):
        return None
    if not source.holds(source.weights, *SAME):
        return None
    config, name = seen(source)
    evidence = f"{source.weights} is named as the layers of Qwen Scope are"
    return Found(source, evidence, config, source.weights, name)


def load(found: Found) -> SAE:
    """As SAELens loads it."""
    said = re.search(r"-W\d+K-L0_(\d{1,6})(/|$)", found.source.where)
    k = int(said[1]) if said and "k" not in found.source.given else found.asked("k", "k is not in the file")
    layer = _FILE.fullmatch(found.weights)
    weights = take(found, SAME, transposed=("W_enc", "W_dec"))
    d_in, d_sae = weights["W_enc"].shape
    agree(found, d_in=d_in, d_sae=d_sae, activation="topk", k=k, apply_b_dec_to_input=False, normalise="none")
    plain = Plain(
        rule="topk",
        subtract=False,
        k=positive(k, "k", found),
        hook=HookPoint(f"blocks.{int(layer[1])}.hook_resid_post") if layer else None,
        **weights,
    )
    return done(plain, found, "W_enc")

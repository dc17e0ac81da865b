"""Goodfire's SAEs of Llama 3: one file with encoder_linear and decoder_linear. relu(x W^T + c), b_dec not
subtracted; weights [d_sae d_in] and [d_in d_sae] (read through SAELens 6.54.12)."""

from __future__ import annotations

import re

from saelab.formats.layout import LINEAR, done, take
from saelab.formats.plain import Plain
from saelab.formats.settings import seen
from saelab.formats.source import Found, Source
from saelab.formats.vocabulary import agree
from saelab.sae import SAE
from saelab.types import HookPoint

NAME = "goodfire"

_NAMES = {ours: theirs.replace("coder.", "coder_linear.") for ours, theirs in LINEAR.items()}


def find(source: Source) -> Found | None:
    """Tensors named encoder_linear and decoder_linear."""
    file = source.tensors()
    if file is None or not set(_NAMES.values()) <= set(file.info):
        return None
    config, name = seen(source)
    evidence = f"{source.weights} has encoder_linear and decoder_linear"
    return Found(source, evidence, config, source.weights or "", name)


def load(found: Found) -> SAE:
    """As SAELens loads it. The file's name ends with the layer: ...-l19.pth."""
    weights = take(found, _NAMES, transposed=("W_enc", "W_dec"))
    d_in, d_sae = weights["W_enc"].shape
    said = {"activation": "relu", "apply_b_dec_to_input": False, "normalise": "none"}
    agree(found, d_in=d_in, d_sae=d_sae, **said)
    layer = re.search(r"-l(\d{1,4})\.pth?$", found.weights)
    hook = HookPoint(f"blocks.{int(layer[1])}.hook_resid_post") if layer else None
    return done(Plain(rule="relu", subtract=False, hook=hook, **weights), found, "encoder_linear.weight")

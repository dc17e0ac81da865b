"""A bare file of encoder and decoder, torch.nn.Linear both, that says nothing of how they are used: the SAE
of DeepSeek R1 (qresearch), AutoEncoderNew of dictionary_learning without its config, and others.

The file of qresearch is known by its name. What other files compute must be said by the user, as for any bare
file (see general.py); rule= and subtract= suffice: codes are rule(x W^T + c) of raw inputs, weights as they
are.
"""

from __future__ import annotations

import re
from dataclasses import replace

from saelab.formats import general
from saelab.formats.layout import LINEAR, done, take
from saelab.formats.plain import Plain
from saelab.formats.source import Found, Source
from saelab.formats.vocabulary import agree
from saelab.sae import SAE
from saelab.types import HookPoint

NAME = "linear"
OPTIONS = general.OPTIONS

_DEEPSEEK = re.compile(r"DeepSeek-R1-Distill-Llama-8B-SAE-l(\d{1,3})\.pt")


def find(source: Source) -> Found | None:
    """encoder.weight, encoder.bias, decoder.weight, decoder.bias and no other tensor."""
    file = source.tensors()
    if file is None or set(file.info) != set(LINEAR.values()):
        return None
    known = _DEEPSEEK.search(source.weights or "")
    what = "the name of the SAE of DeepSeek R1" if known else "encoder and decoder alone"
    found = general.find(source)
    return None if found is None else replace(found, evidence=f"{source.weights} has {what}")


def load(found: Found) -> SAE:
    """As SAELens loads that of DeepSeek R1: relu(x W^T + c), b_dec not subtracted. Others as users say."""
    known = _DEEPSEEK.search(found.weights)
    if known is None:
        raw = {"normalise": "none", "normalise_decoder": False}
        return general.load(found, raw if "rule" in found.source.given else None)
    weights = take(found, LINEAR, transposed=("W_enc", "W_dec"))
    d_in, d_sae = weights["W_enc"].shape
    wanted = {"activation": "relu", "apply_b_dec_to_input": False, "normalise": "none"}
    agree(found, d_in=d_in, d_sae=d_sae, **wanted)
    hook = HookPoint(f"blocks.{int(known[1])}.hook_resid_post")
    return done(Plain(rule="relu", subtract=False, hook=hook, **weights), found, "encoder.weight")

"""A bare file of encoder and decoder, torch.nn.Linear both, that says nothing of how they are used: the SAE
of DeepSeek R1 (qresearch), AutoEncoderNew of dictionary_learning without its config, and others.

Names and shapes do not tell whether inputs are normalised or b_dec subtracted, nor which codes are kept, so
users say it: load_sae(..., rule="relu", subtract=False). The file of qresearch is known by its name.
"""

from __future__ import annotations

import re
from typing import Any

from saelab.formats.layout import LINEAR, done, take, whole
from saelab.formats.plain import Plain
from saelab.formats.reading import refuse
from saelab.formats.settings import seen
from saelab.formats.source import Found, Source
from saelab.formats.vocabulary import agree
from saelab.sae import SAE
from saelab.types import HookPoint, short

NAME = "linear"
OPTIONS = {
    "rule": "How codes come from pre-activations: 'relu' or 'topk'.",
    "subtract": "Whether the decoder's bias is subtracted from the input before encoding.",
    "k": "Codes of a row, for rule='topk'.",
}

_DEEPSEEK = re.compile(r"DeepSeek-R1-Distill-Llama-8B-SAE-l(\d{1,3})\.pt")


def find(source: Source) -> Found | None:
    """encoder.weight, encoder.bias, decoder.weight, decoder.bias and no other tensor."""
    file = source.tensors()
    if file is None or set(file.info) != set(LINEAR.values()):
        return None
    known = _DEEPSEEK.search(source.weights or "")
    what = "the name of the SAE of DeepSeek R1" if known else "encoder and decoder alone"
    config, name = seen(source)
    return Found(source, f"{source.weights} has {what}", config, source.weights or "", name)


def load(found: Found) -> SAE:
    """As SAELens loads that of DeepSeek R1: relu(x W^T + c), b_dec not subtracted. Others as users say."""
    known = _DEEPSEEK.search(found.weights)
    why = "names and shapes of tensors do not tell"
    rule: Any = "relu" if known else found.asked("rule", why)
    subtract = False if known else found.asked("subtract", why)
    if rule not in ("relu", "topk") or not isinstance(subtract, bool):
        refuse("rule must be 'relu' or 'topk' and subtract a bool", f"{short(rule)}, {short(subtract)}", "")
    k = whole(found.asked("k", why), "k", found) if rule == "topk" else None
    hook = HookPoint(f"blocks.{int(known[1])}.hook_resid_post") if known else None
    weights = take(found, LINEAR, transposed=("W_enc", "W_dec"))
    d_in, d_sae = weights["W_enc"].shape
    wanted = {"activation": rule, "apply_b_dec_to_input": subtract, "normalise": "none"}
    agree(found, d_in=d_in, d_sae=d_sae, **wanted, **({} if k is None else {"k": k}))
    return done(Plain(rule=rule, subtract=subtract, k=k, hook=hook, **weights), found, "encoder.weight")

"""SAEs on attention outputs (Kissane, Krzyzanowski et al.): NAME.pt beside NAME_cfg.json (read at 03b2bc2).

cfg: {"act_size": d_in, "dict_size": d_sae, "act_name": hook, "n_heads"?, ...}. ReLU on activations of all
heads side by side, [n_heads d_head] flattened, b_dec subtracted: relu((x - b_dec) W_enc + b_enc), our
orientation.
"""

from __future__ import annotations

import dataclasses

from saelab.config import is_integer
from saelab.formats.layout import SAME, done, positive, take
from saelab.formats.plain import Plain, hook_of
from saelab.formats.reading import refuse
from saelab.formats.settings import HARMLESS, known, only
from saelab.formats.source import Found, Source
from saelab.sae import SAE

NAME = "attention_output"


def find(source: Source) -> Found | None:
    """act_size, dict_size and act_name in the JSON file of a .pt file's name."""
    weights = source.weights
    if weights is None or not weights.endswith(".pt"):
        return None
    name = weights.removesuffix(".pt") + "_cfg.json"
    config = source.config(name)
    if config is None or not {"act_size", "dict_size", "act_name"} <= set(config):
        return None
    return Found(source, f"{name} has act_size, dict_size and act_name", config, weights, name)


def load(found: Found) -> SAE:
    """What its AutoEncoder.load_from_hf gives."""
    config = found.config
    known(config, HARMLESS | {"act_size", "dict_size", "n_heads", "head", "flatten_heads"}, found)
    only(config.get("flatten_heads"), [None, True], "flatten_heads", found)
    only(config.get("head"), [None, "cat"], "head", found)
    weights = take(found, SAME)
    d_in, d_sae = weights["W_enc"].shape
    for key, size in (("act_size", d_in), ("dict_size", d_sae)):
        if positive(config[key], key, found) != size:
            refuse(f"{key} in {found.path} must fit {found.weights}, where it is {size}", str(config[key]))
    hook, heads = hook_of(config["act_name"], found.path), config.get("n_heads")
    if hook is not None and hook.name.endswith("hook_z") and is_integer(heads) and not d_in % max(1, heads):
        hook = dataclasses.replace(hook, n_heads=heads)
    return done(Plain(rule="relu", subtract=True, hook=hook, **weights), found, "W_enc")

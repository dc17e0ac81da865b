"""Gemma Scope (DeepMind): folders with `params.npz`, or `params.safetensors` and `config.json` of the second
release. JumpReLU on raw activations, b_dec not subtracted:

    codes = relu(pre) where pre > threshold,   pre = x @ W_enc + b_enc,   x_hat = codes @ W_dec + b_dec

W_enc [d_in d_sae], W_dec [d_sae d_out], threshold [d_sae]; names lower-case in the second release, whose
transcoders may have affine_skip_connection [d_in d_out]. Files name no hook point: folders do. Embedding SAEs
are of embeddings times sqrt(d_in), which is folded here. Read through SAELens 6.54.12 (gemma_2,
gemma_2_transcoder, gemma_3).
"""

from __future__ import annotations

import re

from saelab.formats.layout import SAME, flag, take
from saelab.formats.layout import done as finished
from saelab.formats.plain import Plain
from saelab.formats.reading import refuse
from saelab.formats.settings import known
from saelab.formats.source import Found, Source
from saelab.sae import SAE
from saelab.types import HookPoint, short

NAME = "gemma_scope"
FIRST, SECOND, CONFIG_FILE = "params.npz", "params.safetensors", "config.json"

_KEYS = "architecture model_name hf_hook_point_in hf_hook_point_out affine_connection width l0 type".split()


def find(source: Source) -> Found | None:
    """params.npz with a threshold; params.safetensors with lower-case names and a threshold."""
    config = source.config(CONFIG_FILE)
    named = CONFIG_FILE if config is not None else None
    if source.has(FIRST):
        jump = source.holds(FIRST, *_TENSORS)
        evidence = f"{FIRST}, tensors of JumpReLU"
        return Found(source, evidence, config or {}, FIRST, named) if jump else None
    if not source.has(SECOND) or not source.holds(SECOND, *_TENSORS):
        return None
    return Found(source, f"{SECOND} with w_enc and threshold", config or {}, SECOND, named)


_TENSORS = ("w_enc", "w_dec", "b_enc", "b_dec", "threshold")


def load(found: Found) -> SAE:
    """As SAELens loads it, but for cross-layer transcoders, which it sums over layers."""
    config, where = found.config, found.source.where
    known(config, _KEYS, found)
    if config.get("architecture", "jump_relu") != "jump_relu":
        refuse(f"architecture in {found.path} must be jump_relu", short(config["architecture"]))
    if len(found.file.info[_actual(found, "w_dec")].shape) == 3:
        refuse(
            f"w_dec in {found.file.path} must be [d_sae d_out]",
            "three axes: a cross-layer transcoder, which writes to every later layer",
            "An SAE writes to one place: no part of it gives what the whole gives.",
        )
    names = {ours: _actual(found, ours.lower()) for ours in SAME} | {"threshold": _actual(found, "threshold")}
    skip = "affine_skip_connection"
    affine = flag(config.get("affine_connection", skip in found.file.info), "affine_connection", found)
    transcodes = "transcoder" in where or "hf_hook_point_out" in config or affine
    if affine:
        names["W_skip"] = skip
    factors = "scaling_factor"
    if factors in found.file.info and not (found.file.read(factors) == 1).all():
        refuse(f"{factors} in {found.file.path} must be 1", "others", "No release has any.")
    weights = take(found, names, transcodes=transcodes, ignored=[factors])
    plain = Plain(rule="jumprelu", subtract=False, transcodes=transcodes, **hooks(where), **weights)
    if re.search(r"(^|/)embedding(/|$)", where):
        root = plain.W_enc.shape[0] ** 0.5
        plain = Plain(**{**vars(plain), "W_enc": plain.W_enc / root, "W_dec": plain.W_dec * root})
    return finished(plain, found, names["W_enc"])


def _actual(found: Found, lower: str) -> str:
    """A tensor's name as the file spells it."""
    return next((name for name in found.file.info if name.lower() == lower), lower)


def hooks(where: str) -> dict[str, HookPoint]:
    """The hook points that the names of folders and repository stand for."""
    layer = re.search(r"layer_(\d{1,4})", where)
    if re.search(r"(^|/)embedding(/|$)", where):
        return {"hook": HookPoint("hook_embed")}
    if layer is None:
        return {}
    block = f"blocks.{int(layer[1])}"
    if "transcoder" in where:
        second = "gemma-scope-2-" in where or re.search(r"/transcoder", where)
        # the second release reads what the norm before the MLP gives, the first that without its gain
        read = f"{block}.mlp.hook_in" if second else f"{block}.ln2.hook_normalized"
        return {"hook": HookPoint(read), "hook_out": HookPoint(f"{block}.hook_mlp_out")}
    points = {
        r"-res(-|/|$)|resid_post": "hook_resid_post",
        r"-mlp(-|/|$)|mlp_out": "hook_mlp_out",
        r"-att(-|/|$)|attn_out": "attn.hook_z",
    }
    found = [point for pattern, point in points.items() if re.search(pattern, where)]
    return {"hook": HookPoint(f"{block}.{found[0]}")} if len(found) == 1 else {}

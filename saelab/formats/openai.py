"""openai/sparse_autoencoder: one file, a dict of tensors and of what the activation is (read at 4965b94).

    mu, s = mean and standard deviation of x          (activation TopK; else 0 and 1)
    pre   = ((x - mu) / (s + 1e-5) - pre_bias) @ encoder.weight^T + latent_bias
    codes = the k largest of pre, then relu           (TopK)    or relu(pre) (ReLU)
    x_hat = (codes @ decoder.weight^T + pre_bias) s + mu

encoder.weight [d_sae d_in], decoder.weight [d_in d_sae]. Whether rows are normalised is not stored: the
library's loader derives it from the activation, and so does this. stats_* and latents_* count how often
latents fired and are passed over.
"""

from __future__ import annotations

import re

from saelab.formats.layout import done, positive, take
from saelab.formats.plain import Plain
from saelab.formats.reading import refuse
from saelab.formats.settings import known, only
from saelab.formats.source import Found, Source
from saelab.sae import SAE
from saelab.types import HookPoint, short

NAME = "openai"

_NAMES = {
    "W_enc": "encoder.weight",
    "b_enc": "latent_bias",
    "W_dec": "decoder.weight",
    "b_dec": "pre_bias",
}
_COUNTS = re.compile(r"stats_last_nonzero|latents_activation_frequency|latents_mean_square")
_POINTS = {
    "resid_post_mlp": "hook_resid_post",
    "resid_post_attn": "hook_resid_mid",
    "resid_delta_mlp": "hook_mlp_out",
    "resid_delta_attn": "hook_attn_out",
    "mlp_post_act": "mlp.hook_post",
}


def find(source: Source) -> Found | None:
    """pre_bias and latent_bias beside the name of an activation."""
    file = source.tensors()
    if file is None or not {"pre_bias", "latent_bias"} <= set(file.info) or "activation" not in file.extra:
        return None
    evidence = f"{source.weights} has pre_bias, latent_bias and activation {short(file.extra['activation'])}"
    return Found(source, evidence, dict(file.extra), source.weights or "")


def load(found: Found) -> SAE:
    """What Autoencoder.from_state_dict gives."""
    config, file = found.config, found.file
    activation = config["activation"]
    known(config, {"activation", "activation_state_dict.k", "activation_state_dict.postact_fn"}, found)
    if activation != "TopK":
        only(config.get("activation_state_dict.k"), [None], "activation_state_dict.k", found)
    names = dict(_NAMES)
    if "decoder.linear.weight" in file.info:  # tied: the decoder is the encoder's transpose
        names["W_dec"] = "decoder.linear.weight"
    weights = take(found, names, transposed=("W_enc", "W_dec"), ignored=filter(_COUNTS.match, file.info))
    if activation not in ("TopK", "ReLU"):
        refuse(
            f"activation in {found.path} must be TopK or ReLU", short(activation), "saelab has no such SAE."
        )
    after = config.get("activation_state_dict.postact_fn", "ReLU")
    if activation == "TopK" and after != "ReLU":
        refuse(f"postact_fn in {found.path} must be ReLU", short(after), "saelab has no such SAE.")
    place = re.search(r"(resid_\w+?|mlp_post_act)(_v\d\w*)?/autoencoders/(\d{1,4})\.pt$", found.source.where)
    hook = None
    if place and place[1] in _POINTS:
        hook = HookPoint(f"blocks.{int(place[3])}.{_POINTS[place[1]]}")
    topk = activation == "TopK"
    plain = Plain(
        rule="topk" if topk else "relu",
        subtract=True,
        normalise="zscore" if topk else "none",
        k=positive(config.get("activation_state_dict.k"), "k", found) if topk else None,
        hook=hook,
        **weights,
    )
    return done(plain, found, "encoder.weight")

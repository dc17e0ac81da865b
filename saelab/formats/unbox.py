"""SAEs of diffusion models: sdxl-unbox and Interpret-then-deactivate, a folder with `state_dict.pth` and
`config.json` (read at surkovv/sdxl-unbox 4152bc9 and NANSirun/Interpret-then-deactivate 6e8869a).

The k largest of (x - pre_bias) encoder.weight^T + latent_bias, then relu; x_hat adds pre_bias. Unlike in
OpenAI's code, which has the same names, rows are not normalised. mean.pt and std.pt are of codes, for
steering. Inputs of sdxl-unbox are what a block adds to its input, not its output.
"""

from __future__ import annotations

from saelab.formats.layout import done, positive, take
from saelab.formats.plain import Plain
from saelab.formats.reading import refuse
from saelab.formats.settings import known
from saelab.formats.source import Found, Source
from saelab.sae import SAE
from saelab.types import short

NAME = "unbox"
CONFIG_FILE, WEIGHTS_FILE = "config.json", "state_dict.pth"

_NAMES = {
    "W_enc": "encoder.weight",
    "b_enc": "latent_bias",
    "W_dec": "decoder.weight",
    "b_dec": "pre_bias",
}


def find(source: Source) -> Found | None:
    """config.json with n_dirs_local, d_model and k, beside state_dict.pth."""
    config = source.config(CONFIG_FILE)
    if config is None or not {"n_dirs_local", "d_model", "k"} <= set(config) or not source.has(WEIGHTS_FILE):
        return None
    return Found(source, f"{CONFIG_FILE} has n_dirs_local, d_model and k", config, WEIGHTS_FILE, CONFIG_FILE)


def load(found: Found) -> SAE:
    """What SparseAutoencoder.load_from_disk gives."""
    file, config = found.file, found.config
    known(config, {"n_dirs_local", "d_model", "k", "auxk", "dead_steps_threshold"}, found)
    nested = "state_dict."
    if any(name.startswith(nested) for name in file.info):
        file = file.within(nested)
    weights = take(found, _NAMES, file=file, transposed=("W_enc", "W_dec"), ignored=["stats_last_nonzero"])
    d_in, d_sae = weights["W_enc"].shape
    for key, size in (("d_model", d_in), ("n_dirs_local", d_sae)):
        if config[key] != size:
            refuse(f"{key} in {found.path} must fit {found.weights}, where it is {size}", short(config[key]))
    plain = Plain(rule="topk", subtract=True, k=positive(config["k"], "k", found), **weights)
    return done(plain, found, next(name for name in found.file.info if name.endswith("encoder.weight")))

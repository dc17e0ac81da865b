"""Variational SAEs (vSAE, arXiv 2509.22994) of a fork of dictionary_learning, ZachData's
SPAR-Variational-Sparse-Autoencoders (its revisions 3cd4007 to ad03f7a were read).

An encoder gives mu = (x - bias) W + c, and a second one, `var_encoder`, in files with var_flag 1, a variance.
Codes are drawn in training and computed from the mean at evaluation, as here: the second encoder is not kept.
bias is subtracted only where it is not the decoder's own (use_april_update_mode false). Codes:

    VSAETopK         the k largest of relu(mu), where `threshold` is stored (to ba76475; it is not used) or
                     architecture_version is vae_topk_v2 (from 8e1581a)
                     of fixed_vae_topk_v2 the k largest |mu|, signs kept (4bfee06 to 811604b), or those of
                     relu(mu) (060efb2 to 7ab08a5): nothing in the files tells which, so users say it
                     W_enc, b_enc, W_dec, b_dec for names: as its loaders mean to convert them
    masked VSAETopK  the k largest |mu|, signs kept; its config names no dict_class
    VSAEIsoGaussian, VSAEPAnneal, VSAEMultiGaussian
                     relu(mu), where log_var_init is not among the settings (to bc94c53)
    VSAEJumpReLU     relu(mu) where mu exceeds the latent's threshold, of the files with W_enc (from bc94c53)

On loading the library gives decoder rows norm 1 and multiplies the encoder by their norms, but for files with
a second encoder. That changes which codes a VSAETopK keeps, and a VSAEJumpReLU's thresholds stay as they
were. This does the same, so that codes are those of `load_dictionary`; rescale=False leaves the weights as
they were trained.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import torch

from saelab.formats.layout import LINEAR, SAME, done, flag, integer, positive, take
from saelab.formats.plain import Plain
from saelab.formats.reading import TensorFile, refuse
from saelab.formats.settings import known, only
from saelab.types import short

if TYPE_CHECKING:
    from saelab.formats.source import Found
    from saelab.sae import SAE
    from saelab.types import HookPoint

MASKED = "VSAETopKMasked"
"""What stands for the VSAETopK whose config names no class."""
OPTIONS = {
    "selection": "Which codes a VSAETopK of fixed_vae_topk_v2 keeps: 'relu' or 'abs' (largest |mu|, signed).",
    "rescale": "Whether a variational SAE's decoder rows get norm 1 first, as its library does on loading.",
}
_DENSE = "its codes are means of either sign, none of them 0"
_REFUSED = {
    "VSAEGated": "its magnitudes are of either sign since 4bfee06, and no earlier one is read",
    "VSAEGatedAutoEncoder": "its magnitudes are of either sign since 4bfee06, and no earlier one is read",
    "VSAEGatedAnneal": "its gates are sigmoids, so that no code is 0",
    "VSAEBatchTopK": "it selects among all rows of a batch, in evaluation too",
    "MatryoshkaVSAEIso": "it selects among all rows of a batch, in evaluation too",
    "VSAEMixtureGaussian": _DENSE,
    "VSAEPriorsGaussian": _DENSE,
    "LaplacianTopK": "its source was not read",
}
_RELU = ("VSAEIsoGaussian", "VSAEPAnneal", "VSAEMultiGaussian")
_READ = ("VSAETopK", MASKED, *_RELU, "VSAEJumpReLU")
CLASSES = (*_READ, *_REFUSED)
_MASKED_KEYS = set(
    "activation_dim dict_size k var_flag use_april_update_mode steps lr kl_coeff auxk_alpha warmup_steps "
    "sparsity_warmup_steps decay_start wandb_name".split()
)
# how they were trained, besides that which decides the codes
_KEYS = _MASKED_KEYS | set(
    "dict_class trainer_class log_var_init dtype device seed layer lm_name submodule_name kl_warmup_steps "
    "threshold_beta threshold_start_step dead_feature_threshold gradient_clip_norm architecture_version "
    "fixes_applied key_features threshold aux_weight sparsity_penalty sparsity_coeff sparsity_function "
    "anneal_start anneal_end p_start p_end n_sparsity_updates sparsity_queue_length corr_rate".split()
)
_SECOND = ({"var_encoder.weight", "var_encoder.bias"}, {"W_enc_var", "b_enc_var"})


def is_masked(trainer: Mapping[str, Any]) -> bool:
    """Whether a config without dict_class is of the masked VSAETopK: its keys, no more and no less."""
    return set(trainer) == _MASKED_KEYS


def variational(found: Found, file: TensorFile, name: str, hook: HookPoint | None) -> SAE:
    """The SAE of a variational SAE's tensors; name: its dict_class."""
    if name in _REFUSED:
        refuse(
            f"A variational SAE in {found.path} must be one of {', '.join(_READ)}",
            f"{name}: {_REFUSED[name]}",
            "saelab has no such SAE.",
        )
    trainer = found.config["trainer"]
    known(trainer, _KEYS, found)
    second = next((names for names in _SECOND if names & set(file.info)), set())
    linear = "encoder.weight" in file.info
    names = dict(LINEAR if linear else SAME)
    own = names["b_dec"] in file.info  # the decoder's own bias, which is not subtracted
    if not own:
        names["b_dec"] = "b_dec" if linear and "b_dec" in file.info else "bias"
    for key, said in (("var_flag", int(bool(second))), ("use_april_update_mode", own)):
        if trainer.get(key, said) != said:
            got = f"{short(trainer[key])}, where they say {said}"
            refuse(f"{key} in {found.path} must fit the tensors", got)
    rule, rescale = _rule(found, file, name, linear)
    used = {"k"} if rule in ("topk", "abs_topk") else set()
    if rule == "jumprelu":
        names["threshold"] = "threshold"
    if not used:
        only(trainer.get("k"), [None], "k", found)
    ignored = used | second | ({"threshold"} if name == "VSAETopK" else set())
    if second - set(file.info) or used - set(file.info):
        refuse(f"{file.path} must hold {', '.join(sorted(second | used))}", short(sorted(file.info)))
    weights = take(found, names, file=file, transposed=("W_enc", "W_dec") if linear else (), ignored=ignored)
    d_in, d_sae = weights["W_enc"].shape
    for key, size in (("activation_dim", d_in), ("dict_size", d_sae)):
        if trainer.get(key, size) != size:
            refuse(f"{key} in {found.path} must fit the tensors, where it is {size}", short(trainer[key]))
    k = _k(found, file) if used else None
    plain = Plain(rule=rule, subtract=not own, k=k, hook=hook, **weights)
    norms = plain.W_dec.norm(dim=1)
    if not torch.allclose(norms, torch.ones_like(norms), atol=1e-6):
        if "rescale" in found.source.given or rescale is None:
            why = "its decoder rows are not of norm 1, and its library fails to load it"
            rescale = flag(found.asked("rescale", why), "rescale", found)
        if rescale and not second:
            plain = plain.folded(norms, file.path)
    return done(plain, found, names["W_enc"])


def _rule(found: Found, file: TensorFile, name: str, linear: bool) -> tuple[Any, bool | None]:
    """(rule, whether the library rescales on loading; None where it fails to)."""
    trainer = found.config["trainer"]
    version = trainer.get("architecture_version")
    new = "log_var_init" in trainer  # from 4bfee06 on
    if name in _RELU:
        if new or not linear:
            what = _DENSE if new else "tensors of an earlier layout"
            refuse(f"{name} in {found.path} must be of relu(mu)", what, "saelab has no such SAE.")
        return "relu", True
    if name == "VSAEJumpReLU":
        if linear:
            refuse(f"{name} in {file.path} must hold W_enc", "encoder.weight", "saelab reads no earlier one.")
        return "jumprelu", new
    decided = None
    if name == MASKED:
        decided = "abs"
    elif linear and ((version is None and "threshold" in file.info) or version == "vae_topk_v2"):
        decided = "relu"
    if decided is None:
        decided = found.asked("selection", "revisions that write the same files keep different codes")
    said = found.source.given.get("selection", decided)
    if said != decided or said not in ("relu", "abs"):
        refuse(f"selection of {found.path} must be 'relu' or 'abs', and what the files say", short(said), "")
    rescale = None  # no revision loads what W_enc holds, and 7938390 not its own
    if linear and (name == MASKED or (version is None and "dtype" in trainer)):  # the latter is ba76475
        rescale = False
    elif linear and version is not None:
        rescale = True
    return "topk" if decided == "relu" else "abs_topk", rescale


def _k(found: Found, file: TensorFile) -> int:
    """From config and tensors, which must agree."""
    k = integer(file, "k")
    if found.config["trainer"].get("k", k) != k:
        refuse(
            f"k in {found.path} must be that of {file.path.name}, {k}", short(found.config["trainer"]["k"])
        )
    return positive(k, "k", found)

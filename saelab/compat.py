"""SAEs as objects of other libraries, for their tools, and objects of theirs as SAEs.

Objects are made of the files that both read, so that codes and reconstructions are the same, and what cannot
be represented exactly is refused; weights are copies.
"""

from __future__ import annotations

import copy
import importlib
import tempfile
from pathlib import Path
from typing import Any

from saelab.arguments import an_sae, checked
from saelab.files import write_json
from saelab.formats import load_sae, save_sae
from saelab.sae import SAE
from saelab.types import ConfigError, HookPoint, MissingDependency, short


@checked(sae=an_sae)
def to_saelens(sae: SAE, **metadata: Any) -> Any:
    """An SAE of SAELens with the codes and reconstructions of ours: one of its own classes, for
    HookedSAETransformer, SAEDashboard, SAEBench, and whatever else takes these.

    Scales of the activations are folded into its weights; it is on the device of ours.

    Args:
        sae: An SAE or a transcoder. Architectures that SAELens has: relu, gated, jumprelu, topk, abs_topk,
            matching pursuit, transcoders of relu and jumprelu; those whose threshold is fixed after training
            (batchtopk, matryoshka and others) as jumprelu.
        metadata: What `cfg.metadata` says beside the hook points, such as model_name="gpt2".

    Returns:
        `sae_lens.SAE`.

    Raises:
        FormatError: SAELens has no such architecture.
        MissingDependency: SAELens is not installed.
    """
    library = _library("sae_lens", "sae-lens>=6")
    with tempfile.TemporaryDirectory() as folder:
        save_sae(sae, folder, "saelens")
        found = copy.deepcopy(library.SAE.load_from_disk(folder))  # no longer of the file
    for name, value in metadata.items():
        setattr(found.cfg.metadata, name, value)
    return found.to(str(sae.device))


def from_saelens(theirs: Any) -> SAE:
    """An SAE with the codes and reconstructions of one of SAELens.

    Args:
        theirs: `sae_lens.SAE`, of an architecture that `saelab.load_sae` reads; of one in training what its
            `save_inference_model` keeps.

    Returns:
        An SAE in eval mode, on the CPU.

    Raises:
        ConfigError: It is none of SAELens.
        FormatError: It cannot be represented exactly.
    """
    save = getattr(theirs, "save_inference_model", None) or getattr(theirs, "save_model", None)
    if not callable(save) or not hasattr(theirs, "cfg"):
        message = f"theirs must be an SAE of SAELens. Got {short(theirs)}. Load files by saelab.load_sae."
        raise ConfigError(message)
    with tempfile.TemporaryDirectory() as folder:
        save(folder)
        return copy.deepcopy(load_sae(folder, format="saelens"))


@checked(sae=an_sae)
def to_dictionary_learning(sae: SAE) -> Any:
    """A dictionary of dictionary_learning with the codes and reconstructions of ours: one of its own classes,
    for its `evaluate` and whatever else takes these.

    Args:
        sae: An SAE: relu, gated, jumprelu, topk, batchtopk, matryoshka, or one that is one of these once it
            is trained, not normalised row by row.

    Returns:
        `dictionary_learning.dictionary.Dictionary`, on the device of the SAE.

    Raises:
        FormatError: dictionary_learning has no such dictionary.
        MissingDependency: dictionary_learning is not installed.
    """
    utils = _library("dictionary_learning.utils", "dictionary-learning")
    with tempfile.TemporaryDirectory() as folder:
        save_sae(sae, folder, "dictionary_learning")
        found, _ = utils.load_dictionary(folder, str(sae.device))
    return found


def from_dictionary_learning(theirs: Any, hook: HookPoint | str | None = None) -> SAE:
    """An SAE with the codes and reconstructions of a dictionary of dictionary_learning.

    Args:
        theirs: A dictionary, of a class that `saelab.load_sae` reads.
        hook: The hook point that it was trained on, which dictionaries do not know.

    Returns:
        An SAE in eval mode, on the CPU.

    Raises:
        ConfigError: It is no dictionary.
        FormatError: It cannot be represented exactly.
    """
    sizes = {name: getattr(theirs, name, None) for name in ("activation_dim", "dict_size")}
    if None in sizes.values() or not callable(getattr(theirs, "state_dict", None)):
        message = (
            f"theirs must be a dictionary of dictionary_learning. Got {short(theirs)}. Load files by "
            "saelab.load_sae."
        )
        raise ConfigError(message)
    import safetensors.torch

    trainer = {"dict_class": type(theirs).__name__, **sizes}
    if getattr(theirs, "k", None) is not None:
        trainer["k"] = int(theirs.k)
    tensors = {name: tensor.detach().clone().contiguous() for name, tensor in theirs.state_dict().items()}
    with tempfile.TemporaryDirectory() as folder:
        write_json(Path(folder) / "config.json", {"trainer": trainer})
        safetensors.torch.save_file(tensors, Path(folder) / "model.safetensors")
        given: dict[str, Any] = {} if hook is None else {"hook": hook}
        return copy.deepcopy(load_sae(folder, format="dictionary_learning", **given))


def _library(name: str, package: str) -> Any:
    try:
        return importlib.import_module(name)
    except ImportError as error:
        message = (
            f"An object of {name.split('.')[0]} needs it installed. Got {error}. Install it: pip install "
            f"'{package}'. Its files need none of it: saelab.save_sae(sae, folder, format)."
        )
        raise MissingDependency(message) from error


__all__ = ["from_dictionary_learning", "from_saelens", "to_dictionary_learning", "to_saelens"]

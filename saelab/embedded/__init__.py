"""The subjects that ship with saelab: a small language model, SAEs on it, and indices of their latents; a
small vision transformer that sees drawn figures, an SAE on its patches, and an index of its latents.

Paths and provenance only; nothing is loaded here. `python -m saelab.commands.build_embedded` makes the
assets.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from saelab.files import read_json
from saelab.types import HookError, StoreError, nearest

ASSETS = Path(__file__).parent / "assets"
SAE_HOOKS = (
    "blocks.1.hook_resid_post",
    "blocks.2.hook_resid_post",
    "blocks.3.hook_resid_post",
    "blocks.1.attn.hook_z",
    "blocks.2.attn.hook_z",
)
STORE_HOOK = "blocks.2.hook_resid_post"
VISION_HOOK = "blocks.2.hook_resid_post"


def model_folder() -> Path:
    """The language model as a Hugging Face folder.

    Raises:
        StoreError: The assets are missing.
    """
    return _existing(ASSETS / "model")


def sae_folder(hook: str = STORE_HOOK) -> Path:
    """The SAE of a hook point, for `SAE.load`.

    Raises:
        HookError: The hook point has none.
        StoreError: The assets are missing.
    """
    if not isinstance(hook, str) or hook not in SAE_HOOKS:
        known = ", ".join(SAE_HOOKS)
        message = f"Unknown hook point {hook!r}. {nearest(str(hook), SAE_HOOKS)}SAEs ship at {known}."
        raise HookError(message)
    return _existing(ASSETS / "saes" / hook)


def store_folder(hook: str = STORE_HOOK) -> Path:
    """The feature store of a hook point's SAE, for `FeatureStore.open`.

    Raises:
        HookError: The hook point has none.
        StoreError: The assets are missing.
    """
    sae_folder(hook)
    return _existing(ASSETS / "features" / hook)


def vision_folder() -> Path:
    """The vision transformer as a Hugging Face folder with its image processor, for `VisionModel.load`. It
    has a logit for each value of `saelab.corpora.SHAPE_ATTRIBUTES`.

    Raises:
        StoreError: The assets are missing.
    """
    return _existing(ASSETS / "vision" / "model")


def vision_sae_folder() -> Path:
    """The SAE on the patches at `VISION_HOOK`, for `SAE.load`.

    Raises:
        StoreError: The assets are missing.
    """
    return _existing(ASSETS / "vision" / "sae")


def vision_store_folder() -> Path:
    """The feature store of that SAE over pictures of `saelab.corpora.shapes`, for `FeatureStore.open`.

    Raises:
        StoreError: The assets are missing.
    """
    return _existing(ASSETS / "vision" / "features")


def circuits_file() -> Path:
    """What exact patching found of the model's tasks, for `saelab.analysis.read_truths`;
    `python -m saelab.commands.freeze_circuits` writes it.

    Raises:
        StoreError: The assets are missing.
    """
    return _existing(ASSETS.parent / "circuits.json")


def provenance() -> dict[str, Any]:
    """How the assets were made: command, seeds, versions, tokens seen, loss curve, scores, hashes."""
    return read_json(_existing(ASSETS / "provenance.json"), "provenance of the assets")


def _existing(path: Path) -> Path:
    if not path.exists():
        message = (
            f"The embedded assets must be installed with saelab. Got no {path}. "
            "Install saelab again, or make them: python -m saelab.commands.build_embedded"
        )
        raise StoreError(message)
    return path

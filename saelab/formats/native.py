"""saelab's own format: see saelab.sae.storage."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from saelab.formats.reading import TensorFile, json_file, safetensors_file
from saelab.sae import SAE
from saelab.sae.storage import CONFIG_FILE, FORMAT, WEIGHTS_FILE

NAME = "saelab"


def recognise(folder: Path) -> str | None:
    """config.json that says so."""
    if not (folder / CONFIG_FILE).is_file():
        return None
    said = json_file(folder / CONFIG_FILE).get("format")
    return f"{CONFIG_FILE} has format {FORMAT!r}" if said == FORMAT else None


def read(folder: Path) -> tuple[dict[str, Any], TensorFile]:
    """The manifest and the tensors' header."""
    return json_file(folder / CONFIG_FILE), safetensors_file(folder / WEIGHTS_FILE)


def load(folder: Path, config: dict[str, Any], file: TensorFile) -> SAE:
    """Bit-equal to what was saved."""
    return SAE.load(folder)


def save(sae: SAE, folder: Path) -> None:
    """As SAE.save."""
    sae.save(folder)

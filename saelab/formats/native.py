"""saelab's own format: see saelab.sae.storage."""

from __future__ import annotations

from pathlib import Path

from saelab.files import SAE_STAMP
from saelab.formats.source import Found, Source
from saelab.sae import SAE
from saelab.sae.storage import CONFIG_FILE, WEIGHTS_FILE

NAME = "saelab"


def find(source: Source) -> Found | None:
    """config.json that says so."""
    config = source.config(CONFIG_FILE)
    if config is None or config.get("format") != SAE_STAMP.format:
        return None
    return Found(source, f"{CONFIG_FILE} has format {SAE_STAMP.format!r}", config, WEIGHTS_FILE, CONFIG_FILE)


def load(found: Found) -> SAE:
    """Bit-equal to what was saved."""
    return SAE.load(found.source.folder)


def save(sae: SAE, folder: Path) -> None:
    """As SAE.save."""
    sae.save(folder)

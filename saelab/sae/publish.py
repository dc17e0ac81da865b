"""An SAE as a repository of the Hugging Face hub: its two files and a card."""

from __future__ import annotations

import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from torch import Tensor

from saelab.sae import storage
from saelab.sae.config import SAEConfig
from saelab.types import StoreError


def push(
    config: SAEConfig,
    tensors: Mapping[str, Tensor],
    repository: str,
    metrics: Mapping[str, Any],
    provenance: Mapping[str, Any],
    dtype: str,
    private: bool,
    subfolder: str | None,
) -> str:
    """See SAE.push_to_hub."""
    from huggingface_hub import HfApi
    from huggingface_hub.errors import HfHubHTTPError, OfflineModeIsEnabled

    with tempfile.TemporaryDirectory() as folder:
        storage.save(config, tensors, Path(folder), dtype)
        text = card(config, tensors, repository, metrics, provenance, subfolder)
        (Path(folder) / "README.md").write_text(text, encoding="utf-8")
        try:
            api = HfApi()
            api.create_repo(repository, private=private, exist_ok=True)
            done = api.upload_folder(
                repo_id=repository,
                folder_path=folder,
                path_in_repo=subfolder,
                commit_message=f"Add {config.title} SAE",
            )
        except (HfHubHTTPError, OfflineModeIsEnabled, OSError) as error:
            msg = (
                f"{repository} must be writable on the Hugging Face hub. Got: {str(error).splitlines()[0]}. "
                "Log in (hf auth login) with a token that may write, and check the network."
            )
            raise StoreError(msg) from error
    return str(done.commit_url)


def card(
    config: SAEConfig,
    tensors: Mapping[str, Tensor],
    repository: str,
    metrics: Mapping[str, Any],
    provenance: Mapping[str, Any],
    subfolder: str | None = None,
) -> str:
    """A model card in Markdown: what the SAE is, its metrics and where it is from."""
    said = {
        "architecture": config.title,
        "d_in": config.d_in,
        "d_sae": config.d_sae,
        **({"d_out": config.d_out} if config.d_out is not None else {}),
        "hook": ", ".join(str(hook) for hook in (config.hooks or (config.hook,))),
        "fingerprint": storage.fingerprint(config, tensors),
    }
    where = repr(repository) + (f", {subfolder!r}" if subfolder else "")
    text = ["---\nlibrary_name: saelab\ntags:\n- sparse-autoencoder\n---\n", f"# {repository}\n"]
    text += [
        "A sparse autoencoder. Load it:\n",
        f"```python\nimport saelab\n\nsae = saelab.load_sae({where})\n```\n",
    ]
    for title, rows in (("What it is", said), ("Metrics", metrics), ("Provenance", provenance)):
        if rows:
            lines = [f"| {_cell(key)} | {_cell(value)} |" for key, value in rows.items()]
            text += [f"## {title}\n", "| | |\n|---|---|\n" + "\n".join(lines) + "\n"]
    return "\n".join(text)


def _cell(value: Any) -> str:
    return str(value).replace("|", "\\|").replace("\n", " ")

"""An SAE as a repository of the Hugging Face hub: its two files and a card."""

from __future__ import annotations

import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

from torch import Tensor

from saelab.sae import storage
from saelab.sae.config import SAEConfig
from saelab.types import ConfigError, StoreError

if TYPE_CHECKING:
    import pandas as pd

REPORT = "report.json"
"""The report's file, beside the SAE's."""


class Reported(Protocol):
    """What a card needs of a report of `saelab.evaluate`."""

    hook: str
    n_rows: int
    about: Mapping[str, Any]
    left_out: Mapping[str, str]

    def to_frame(self) -> pd.DataFrame:
        """One line a figure, with its controls and interval."""
        ...

    def save(self, path: Path) -> Path:
        """Write it into a file."""
        ...


def push(
    config: SAEConfig,
    tensors: Mapping[str, Tensor],
    repository: str,
    metrics: Mapping[str, Any],
    provenance: Mapping[str, Any],
    dtype: str,
    private: bool,
    subfolder: str | None,
    report: Reported | None,
) -> str:
    """See SAE.push_to_hub."""
    from huggingface_hub import HfApi
    from huggingface_hub.errors import HfHubHTTPError, OfflineModeIsEnabled

    with tempfile.TemporaryDirectory() as folder:
        storage.save(config, tensors, Path(folder), dtype)
        text = card(config, tensors, repository, metrics, provenance, subfolder, report)
        if report is not None:
            report.save(Path(folder) / REPORT)
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
    report: Reported | None = None,
) -> str:
    """A model card in Markdown: what the SAE is, how it was evaluated, its metrics and where it is from.

    Raises:
        ConfigError: The report is of another SAE.
    """
    fingerprint = storage.fingerprint(config, tensors)
    if report is not None and report.about.get("fingerprint", fingerprint) != fingerprint:
        message = (
            f"The report of a card must be of the SAE {fingerprint[:12]}. Got one of "
            f"{str(report.about['fingerprint'])[:12]}. Evaluate the SAE as it is pushed."
        )
        raise ConfigError(message)
    said = {
        "architecture": config.title,
        "d_in": config.d_in,
        "d_sae": config.d_sae,
        **({"d_out": config.d_out} if config.d_out is not None else {}),
        "hook": ", ".join(str(hook) for hook in (config.hooks or (config.hook,))),
        "fingerprint": fingerprint,
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
    return "\n".join([*text, *_evaluation(report)])


def _evaluation(report: Reported | None) -> list[str]:
    """Every figure beside its controls, with its interval; what was not measured, and why."""
    if report is None:
        return []
    frame = report.to_frame()
    head = ["", *frame.columns]
    lines = [
        [name, *("" if v != v else f"{v:.4g}" for v in row)] for name, *row in frame.itertuples(name=None)
    ]
    told = (
        f"{report.n_rows:,} rows of {report.hook}; from, to: 95 % interval of this SAE. All of it: {REPORT}."
    )
    table = [head, ["---"] * len(head), *lines]
    shown = "\n".join(f"| {' | '.join(map(_cell, line))} |" for line in table)
    left = [f"- {_inline(name)}: {_inline(why)}" for name, why in report.left_out.items()]
    return ["## Evaluation\n", f"{told}\n", f"{shown}\n", *(["Not measured:\n", *left, ""] if left else [])]


def _inline(value: Any) -> str:
    return str(value).replace("\n", " ")


def _cell(value: Any) -> str:
    return str(value).replace("|", "\\|").replace("\n", " ")

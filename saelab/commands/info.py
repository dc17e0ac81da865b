"""What a folder is: stores, runs, SAEs of any known format, models, jobs that were cut short."""

from __future__ import annotations

import functools
import tempfile
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from saelab.commands import records
from saelab.config import is_integer
from saelab.files import read_json
from saelab.types import FormatError, SaelabError, StoreError

TRIED = 2**24
"""Weights above which it is not tried which formats an SAE can be saved in, which means writing it."""


@dataclass(frozen=True)
class Info:
    """kind: in a few words. data: what is known of it, as JSON data."""

    path: str
    kind: str
    data: dict[str, Any]

    def lines(self) -> list[str]:
        """For people, a line for each thing known."""
        rows = [(name, _said(value)) for name, value in self.data.items() if name not in ("path", "kind")]
        rows = [row for row in rows if row[1]]
        width = max((len(name) for name, _ in rows), default=0)
        return [f"{self.path}: {self.kind}", *(f"  {name:<{width}}  {value}" for name, value in rows)]


def describe(path: str | Path, given: Mapping[str, Any] | None = None) -> Info:
    """What lies at `path`; given: what an SAE's files leave open, as `load_sae` takes it. Raises StoreError
    where it is nothing that saelab knows, or where it is damaged, FormatError for a damaged SAE or run."""
    if isinstance(place := records.place(path), str):
        kind, data = _activations(place)
        return Info(place, kind, {"path": place, "kind": kind, **data, **_job(place)})
    path, reason = place, ""
    sae = functools.partial(_sae, given=given or {})
    for look in (_store, _run, _runs, _demo, sae, _model, _unfinished):
        try:
            found = look(path)
        except FormatError as error:
            if look is not sae:
                raise
            found, reason = None, f" ({error})"
        if found is not None:
            kind, data = found
            return Info(str(path), kind, {"path": str(path), "kind": kind, **data, **_job(path)})
    there = sorted(item.name for item in path.iterdir())[:8] if path.is_dir() else []
    holds = f"which holds {', '.join(there) or 'nothing'}"
    is_what = holds if path.is_dir() else f"which is {'a file' if path.exists() else 'not there'}"
    message = (
        f"info is for stores, runs, SAEs, models and jobs. Got {path}, {is_what}: nothing that saelab "
        f"knows{reason}. Pass a folder that saelab wrote, or one of a known format."
    )
    raise StoreError(message)


def _store(path: Path) -> tuple[str, dict[str, Any]] | None:
    from saelab.stores import FeatureStore

    if not (path / "manifest.json").is_file():
        return None
    manifest = read_json(path / "manifest.json", "manifest", object)
    kind = manifest.get("kind") if isinstance(manifest, dict) else None
    if not isinstance(manifest, dict) or manifest.get("format") != "saelab":
        return None
    made = {name: manifest.get(name) for name in ("packing", "codes", "subject", "sae", "corpus")}
    if kind == "features":
        features = FeatureStore.open(path)
        hook = features.manifest["hook"]["name"]
        counts = {
            f"n_{each}": manifest.get(f"n_{each}") for each in ("latents", "rows", "documents", "codes")
        }
        labels = features.labels()["source"].value_counts().sort_index().to_dict()
        return "feature store", {**counts, "hook": hook, "labels": labels, "bytes": _bytes(manifest), **made}
    return _activations(path)


def _activations(path: str | Path) -> tuple[str, dict[str, Any]]:
    from saelab.stores import ActivationStore

    acts = ActivationStore.open(path)
    made = {name: acts.manifest.get(name) for name in ("packing", "subject", "corpus")}
    return "activation store", {
        "n_rows": acts.n_rows,
        "hooks": {hook: acts.width(hook) for hook in acts.hooks},
        "dtype": acts.dtype,
        "rounding": acts.manifest.get("rounding"),
        "shards": len(acts.manifest["shard_rows"]),
        "bytes": _bytes(acts.manifest),
        **made,
    }


def _run(path: Path) -> tuple[str, dict[str, Any]] | None:
    from saelab.training.run import LINES

    if (path / "run.json").is_file():
        return _finished_run(path)
    if not (path / "checkpoints").is_dir() and not (path / LINES).is_file():
        return None
    from saelab.training import checkpoints

    found = checkpoints.latest([path]) if (path / "checkpoints").is_dir() else None
    if found is None:
        return "training run, no checkpoint yet", {}
    config, settings = found[0].identity["config"], found[0].identity["settings"]
    return "training run, not finished", {
        "recipe": config["recipe"],
        "d_in": config["d_in"],
        "d_sae": config["d_sae"],
        "hook": (config["hook"] or {}).get("name"),
        "steps": f"{found[0].step} of {settings['steps']}",
        "last": found[0].history[-1] if found[0].history else None,
        "remedy": "the same saelab train goes on",
    }


def _finished_run(path: Path) -> tuple[str, dict[str, Any]]:
    from saelab.training import Run

    run = Run.load(path)
    last = run.history[-1].to_dict() if run.history else None
    told = {name: run.provenance.get(name) for name in ("seconds", "rows_per_second", "device", "data")}
    sae = _architecture(run.sae)
    return "training run, finished", {**sae, "steps": run.settings.steps, "last": last, **told}


def _runs(path: Path) -> tuple[str, dict[str, Any]] | None:
    folders = [f for f in sorted(path.glob("*-*")) if f.is_dir() and f.name.split("-")[0].isdigit()]
    found = {folder.name: told for folder in folders if (told := _run(folder)) is not None}
    if not found:
        return None
    return f"{len(found)} training runs", {
        name: f"{kind.removeprefix('training run, ')}, steps {data.get('steps', 0)}"
        for name, (kind, data) in found.items()
    }


def _demo(path: Path) -> tuple[str, dict[str, Any]] | None:
    found = {name: path / name for name in ("acts", "run", "features")}
    if not (path / "report.html").is_file() or not all(place.is_dir() for place in found.values()):
        return None
    return "demo", {"report": str(path / "report.html")} | {
        name: describe(place).lines()[0].split(": ", 1)[1] for name, place in found.items()
    }


def _sae(path: Path, given: Mapping[str, Any]) -> tuple[str, dict[str, Any]] | None:
    from saelab.formats import load_sae, names, save_sae, sniff

    if not path.exists():  # a name of the hub is no folder
        return None
    sniffed = sniff(path)
    told: dict[str, Any] = {"format": sniffed.format, "evidence": sniffed.evidence}
    try:
        sae = load_sae(path, **given)
    except FormatError as error:
        return "SAE that is not loaded", told | {"reason": str(error)}
    told |= _architecture(sae)
    for name in names(writing=True) if sum(p.numel() for p in sae.parameters()) <= TRIED else ():
        with tempfile.TemporaryDirectory() as folder:
            try:
                save_sae(sae, Path(folder) / "sae", name)
                said = "exact"
            except SaelabError as error:
                said = f"refused: {error}"
        told[f"as {name}"] = said
    return "SAE", told


def _architecture(sae: Any) -> dict[str, Any]:
    config = sae.config
    return {
        "recipe": config.recipe,
        "architecture": config.title,
        "d_in": config.d_in,
        "d_sae": config.d_sae,
        "reads": [str(hook) for hook in sae.reads] if config.hook or config.hooks else None,
        "writes": [str(hook) for hook in sae.writes] if config.hook_out else None,
        "normalise": config.options.get("normalise"),
        "dtype": sae.stored_dtype,
    }


def _model(path: Path) -> tuple[str, dict[str, Any]] | None:
    if not (path / "config.json").is_file():
        return None
    config = read_json(path / "config.json", "config.json", object)
    if not isinstance(config, dict) or "model_type" not in config:
        return None
    sizes = ("num_hidden_layers", "n_layer", "hidden_size", "n_embd", "vocab_size")
    return "model", {
        "model_type": config["model_type"],
        "architectures": config.get("architectures"),
        **{name: config[name] for name in sizes if name in config},
        "bytes": sum(f.stat().st_size for f in path.iterdir() if f.is_file()),
    }


def _unfinished(path: Path) -> tuple[str, dict[str, Any]] | None:
    left = records.begun(path)
    if not records.waiting(path).is_file() and not left:
        return None
    found = [file for folder in left for file in folder.rglob("*") if file.is_file()]
    return "job, not finished", {
        "parts": sum(file.name != "job.json" for file in found),
        "bytes": sum(file.stat().st_size for file in found),
        "remedy": "the same command goes on",
    }


def _job(path: str | Path) -> dict[str, Any]:
    """How it was made, where the command line made it."""
    found = records.recorded(path)
    if found is None and isinstance(path, Path) and records.waiting(path).is_file():
        found = records.read(records.waiting(path))
    if found is None:
        return {}
    sessions = found["sessions"]
    last = sessions[-1]
    return {
        "job": {
            "command": found["command"],
            "started": sessions[0]["started"],
            "ended": last["ended"],
            "sessions": len(sessions),
            "seeds": found.get("seeds"),
            "saelab": last["versions"].get("saelab"),
            "git": (last["git"] or {}).get("revision"),
        }
    }


def _bytes(manifest: dict[str, Any]) -> int:
    return sum(entry["bytes"] for entry in manifest["files"].values())


def _said(value: Any) -> str:
    if isinstance(value, dict):
        return ", ".join(f"{name} {_said(each)}" for name, each in value.items() if _said(each))
    if isinstance(value, list):
        return ", ".join(map(_said, value))
    if isinstance(value, float):
        return f"{value:.4g}"
    if is_integer(value):
        return f"{value:,}"
    return "" if value is None else str(value)

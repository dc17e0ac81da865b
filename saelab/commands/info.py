"""What a folder is: stores, runs, SAEs of any known format, models, jobs that were cut short.

Of what saelab wrote, manifests and headers are read, and nothing heavy is imported: torch is for SAEs of
other libraries, which are told by loading them, and where everything is to be checked.
"""

from __future__ import annotations

import functools
import tempfile
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from saelab.commands import records
from saelab.config import from_dict, is_integer
from saelab.files import SAE_STAMP, TENSOR_SUFFIXES, path_of, read_json, read_json_or_none
from saelab.types import ConfigError, FormatError, HookPoint, SaelabError, StoreError

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


def describe(path: str | Path, given: Mapping[str, Any] | None = None, *, check: bool = False) -> Info:
    """What lies at `path`.

    Args:
        path: A folder, a file of an SAE, or an address of a store.
        given: What an SAE's files leave open, as `load_sae` takes it.
        check: Load an SAE, so that its weights are known to be whole, and try in which formats it can be
            written.

    Raises:
        StoreError: It is nothing that saelab knows, or is damaged.
        FormatError: It is a damaged SAE or run.
    """
    if isinstance(place := records.place(path), str):
        kind, data = _activations(place)
        return Info(place, kind, {"path": place, "kind": kind, **data, **_job(place)})
    path, reason = path_of(place), ""
    sae = functools.partial(_sae, given=given or {}, check=check)
    for look in (_store, _run, _runs, _evaluation, _demo, _model, sae, _unfinished):
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
    if not (path / "manifest.json").is_file():
        return None
    manifest = read_json(path / "manifest.json", "manifest", object)
    kind = manifest.get("kind") if isinstance(manifest, dict) else None
    if not isinstance(manifest, dict) or manifest.get("format") != "saelab":
        return None
    made = {name: manifest.get(name) for name in ("packing", "codes", "subject", "sae", "corpus")}
    if kind == "features":
        from saelab.stores.feature_fields import checked_manifest
        from saelab.stores.labels import count_labels

        hook = checked_manifest(path)["hook"]["name"]
        counts = {
            f"n_{each}": manifest.get(f"n_{each}") for each in ("latents", "rows", "documents", "codes")
        }
        labels = count_labels(path, manifest["n_latents"])
        of = {"export": manifest["export"]} if isinstance(manifest.get("export"), dict) else {}
        told = {**counts, "hook": hook, "labels": labels, "bytes": _bytes(manifest), **made, **of}
        return "feature store", told
    return _activations(path)


def _evaluation(path: Path) -> tuple[str, dict[str, Any]] | None:
    if not (path / "reports.json").is_file():
        return None
    from saelab.analysis import Report, read_report

    found = read_report(path / "reports.json")
    reports = {"": found} if isinstance(found, Report) else dict(found.reports)
    told = {name: f"FVU {each.sae.fvu:.4g} at L0 {each.sae.l0:.4g}" for name, each in reports.items()}
    rows = sorted({each.n_rows for each in reports.values()})
    suites = sorted({suite for each in reports.values() for suite in each.suites})
    scores = {"scores": told[""]} if "" in told else {"saes": told}
    return "evaluation", {"n_rows": rows, "suites": suites, **scores}


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
        "last": found[0].history[-1].to_dict() if found[0].history else None,
        "remedy": "the same saelab train goes on",
    }


def _finished_run(path: Path) -> tuple[str, dict[str, Any]]:
    from saelab.training.run import told

    history, settings, provenance, _ = told(path)
    last = history[-1].to_dict() if history else None
    made = {name: provenance.get(name) for name in ("seconds", "rows_per_second", "device", "data")}
    return "training run, finished", {**_own(path), "steps": settings.steps, "last": last, **made}


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


def _sae(path: Path, given: Mapping[str, Any], check: bool) -> tuple[str, dict[str, Any]] | None:
    if not path.exists():  # a name of the hub is no folder
        return None
    if not given and not check and _is_own(path):
        return "SAE", {"format": SAE_STAMP.format, **_own(path)}
    return _loaded(path, given, check) if _may_be_sae(path) else None


def _may_be_sae(path: Path) -> bool:
    """Whether there is a file that an SAE of another library could be of: what asks further loads torch."""
    files = [path] if not path.is_dir() else [item for item in path.iterdir() if not item.is_dir()]
    told = (*TENSOR_SUFFIXES, "config.json", "cfg.json", "config.yaml", ".index.json")
    return any(file.name.endswith(told) for file in files)


def _is_own(path: Path) -> bool:
    """Whether an SAE lies there that saelab wrote."""
    said = read_json_or_none(path / "config.json") or {}
    return said.get("format") == SAE_STAMP.format and "weights" in said


def _own(path: Path) -> dict[str, Any]:
    """Of an SAE that saelab wrote, what its configuration and the header of its weights say."""
    from safetensors import SafetensorError, safe_open

    said = SAE_STAMP.read(path / "config.json", "SAE's config.json")
    try:
        config, weights = said["config"], said["weights"]
        hook, out = (config.get(name) for name in ("hook", "hook_out"))
        options = dict(config.get("options", {}))
        reads = [hook] if hook else config.get("hooks", [])
        ends = {"reads": reads, "writes": [out] if out else []}
        named = {name: [str(from_dict(HookPoint, at)) for at in each] for name, each in ends.items()}
        named["writes"] += [str(at) for at in options.get("hooks_out", [])]
        told = {name: config[name] for name in ("recipe", "d_in", "d_sae")}
        with safe_open(str(path / weights["file"]), framework="np") as file:
            shape = tuple(file.get_slice("W_enc").get_shape())
        if shape != (config["d_in"] // options.get("layers", 1), config["d_sae"]):
            message = f"W_enc of shape {shape}"
            raise ValueError(message)
        options = {name: value for name, value in options.items() if value is not None}
    except (KeyError, TypeError, AttributeError, ValueError, OSError, ConfigError, SafetensorError) as error:
        message = (
            f"The SAE in {path} must be whole. Got {type(error).__name__}: {error}. Save it again, or see "
            "what is wrong: saelab info --check."
        )
        raise FormatError(message) from error
    return {**told, **named, "dtype": weights["dtype"], "options": options}


def _loaded(path: Path, given: Mapping[str, Any], check: bool) -> tuple[str, dict[str, Any]]:
    from saelab.formats import load_sae, names, save_sae, sniff

    sniffed = sniff(path)
    told: dict[str, Any] = {"format": sniffed.format, "evidence": sniffed.evidence}
    try:
        sae = load_sae(path, **given)
    except FormatError as error:
        return "SAE that is not loaded", told | {"reason": str(error)}
    told |= _architecture(sae)
    for name in names(writing=True) if check else ():
        if sum(p.numel() for p in sae.parameters()) > TRIED:
            told[f"as {name}"] = f"not tried: more than {TRIED:,} weights"
            continue
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
        "dtype": sae.stored_dtype,
        "options": _said_options(config.options),
    }


def _said_options(options: Mapping[str, Any]) -> dict[str, Any]:
    return {name: value for name, value in options.items() if value is not None}


def _model(path: Path) -> tuple[str, dict[str, Any]] | None:
    if not (path / "config.json").is_file():
        return None
    config = read_json(path / "config.json", "config.json", object)
    if not isinstance(config, dict) or not {"model_type", "architectures"} <= set(config):
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

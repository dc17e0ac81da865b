"""Jobs done: each command's function, called with what the job says."""

from __future__ import annotations

import functools
import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from saelab.commands import evaluating, info, records
from saelab.commands.jobs import Job
from saelab.types import ConfigError, StoreError

if TYPE_CHECKING:
    from saelab.analysis import Report, Reports
    from saelab.sae import SAE


@dataclass(frozen=True)
class Outcome:
    """What a command tells: lines for people, the same as JSON data; whether it was cut short."""

    lines: list[str]
    data: dict[str, Any]
    interrupted: bool = False


def run(job: Job) -> Outcome:
    """Do the job, or go on with it, or say that it is done. Raises SaelabError."""
    if job.command == "eval":
        return _evaluate(job)
    out = records.place(job.values["out"])
    if records.is_finished(job):
        told = info.describe(out)
        first = f"{out} is finished ({told.data['job']['ended']}): nothing to do."
        return Outcome([first, *told.lines()], {"did": "nothing", **told.data})
    with records.recording(job):
        finished = _DO[job.command](dict(job.values))
        if not finished:
            raise KeyboardInterrupt
    told = info.describe(out)
    return Outcome(told.lines(), {"did": job.command, **told.data})


def convert(
    path: str,
    out: str,
    to: str,
    subfolder: str | None,
    format: str | None,
    overwrite: bool,
    given: Mapping[str, Any],
) -> Outcome:
    """An SAE of any format into another. given: what its files leave open. Raises FormatError for what that
    cannot hold exactly, StoreError where `out` holds something."""
    from saelab.formats import load_sae, save_sae

    folder = Path(out)
    if folder.exists() and (not folder.is_dir() or any(folder.iterdir())) and not overwrite:
        message = (
            f"convert writes to a new or empty folder. Got {out}. Pass another, or --overwrite to write over "
            "the files of the same names."
        )
        raise StoreError(message)
    save_sae(load_sae(path, subfolder, format, **given), folder, to)
    told = info.describe(folder)
    return Outcome(told.lines(), told.data)


def import_(folder: str, out: str, **options: Any) -> Outcome:
    """A feature store of an export of neuronpedia.org. options: of `saelab.stores.from_neuronpedia`, which
    says what it raises."""
    from saelab.stores import from_neuronpedia

    from_neuronpedia(folder, out, **options)
    told = info.describe(out)
    return Outcome(told.lines(), told.data)


def _harvest(values: dict[str, Any]) -> bool:
    from saelab.harvesting import harvest

    harvest(_subject(values.pop("subject")), _corpus(values.pop("corpus")), **values)
    return True


def _index(values: dict[str, Any]) -> bool:
    from saelab.harvesting import index

    subject, sae = _subject(values.pop("subject")), _sae(values.pop("sae"))
    index(subject, sae, _corpus(values.pop("corpus")), **values)
    return True


def _train(values: dict[str, Any]) -> bool:
    from saelab.stores import ActivationStore
    from saelab.training import train

    tables, held_out = values.pop("recipe"), values.pop("held_out")
    unseen = ActivationStore.open(held_out) if isinstance(held_out, str) else held_out
    several = isinstance(tables, list)
    recipes = tables if several else [tables]
    rows = _rows(values, recipes)
    configs = [_recipe(table, rows, values["hooks"]) for table in recipes]
    if values["start"] is not None:
        values["start"] = _sae({"path": values["start"]})
    runs = train(configs if several else configs[0], rows, held_out=unseen, **values)
    return all(run.finished for run in (runs if isinstance(runs, list) else [runs]))


def _rows(values: dict[str, Any], recipes: list[Mapping[str, Any]]) -> Any:
    """What is trained on, out of the values that say so."""
    from saelab.stores import ActivationStore
    from saelab.training import stream

    folder, subject, corpus, options = (values.pop(name) for name in ("acts", "subject", "corpus", "stream"))
    if folder is not None:
        return ActivationStore.open(folder)
    hooks = options.pop("hook")
    if hooks is None:
        named = [hook for r in recipes for hook in (*r["hooks"], r["hook"], r["hook_out"]) if hook]
        hooks = values["hooks"] or list(dict.fromkeys(map(str, named)))
    if not hooks:
        message = "stream.hook must name a hook point. Got none. Pass it, --hooks or --recipe.hook."
        raise ConfigError(message)
    return stream(_subject(subject), _corpus(corpus), hooks, **options)


def _evaluate(job: Job) -> Outcome:
    from saelab import dist

    with dist.joined():  # a process of torchrun takes its own device
        told = _evaluated(job)
        return told if dist.first() else Outcome([], told.data)


def _evaluated(job: Job) -> Outcome:
    from saelab.analysis import Reports

    out, started = job.values["out"], records.now()
    if out is not None and records.is_finished(job):
        report: Report | Reports = evaluating.finished(Path(out))
        return Outcome([f"{out} is finished: nothing to do.", *_told(report)], {"did": "nothing"})
    subject, corpus = _subject(job.values["subject"]), _corpus(job.values["corpus"])
    saes = _saes(job.values["sae"])
    report = evaluating.evaluate(job, saes, subject, corpus)
    several = isinstance(report, Reports)
    of = {name: each.about["fingerprint"] for name, each in report.reports.items()} if several else {}
    data = {
        "command": "eval",
        **{name: each for name, each in json.loads(report.to_json()).items() if name[:6] == "report"},
        "job": job.given,
        "fingerprints": {
            "subject": subject.fingerprint(),
            "sae": of if isinstance(report, Reports) else report.about["fingerprint"],
            "corpus": corpus.fingerprint(),
        },
        "seeds": job.seeds(),
        "versions": records.versions(),
        "git": records.git_revision(),
        "started": started,
        "ended": records.now(),
    }
    return Outcome(_told(report), data)


def _told(report: Report | Reports) -> list[str]:
    """A table; of several SAEs of one place which are on the front of FVU over L0."""
    lines = str(report).splitlines()
    found = getattr(report, "frontier", None)
    if found is None or len(found.points) < 2:
        return lines
    front = found.front().to_string(index=False, float_format=lambda v: f"{v:.4g}")
    return [*lines, "", "Pareto front (none is as sparse and better):", *front.splitlines()]


def _saes(table: Mapping[str, Any]) -> dict[str, Callable[[], SAE]]:
    """What loads each SAE that is meant: one, called "", or all of a folder, by their places in it."""
    from saelab.formats import list_saes

    path = Path(table["path"])
    if table.get("subfolder") is None and table["path"] != "embedded" and path.is_dir():
        names = [each.subfolder for each in list_saes(path) if each.subfolder not in ("", ".")]
        if names:
            return {name: functools.partial(_sae, {**table, "subfolder": name}) for name in names}
    return {"": functools.partial(_sae, table)}


_DO = {"harvest": _harvest, "index": _index, "train": _train}


def _subject(table: Mapping[str, Any]) -> Any:
    from saelab import embedded
    from saelab.subjects import load_subject

    name = embedded.model_folder() if table["name"] == "embedded" else table["name"]
    return load_subject(**{**table, "name": name})


def _sae(table: Mapping[str, Any]) -> Any:
    from saelab import embedded
    from saelab.formats import load_sae

    table = {name: value for name, value in table.items() if value is not None}
    if table["path"] != "embedded":
        return load_sae(**table)
    folder = embedded.sae_folder(table.get("subfolder") or embedded.STORE_HOOK)
    return load_sae(**{**table, "path": folder, "subfolder": None})


def _corpus(table: Mapping[str, Any]) -> Any:
    from saelab import corpora

    own = dict(table)
    make, take, shard = getattr(corpora, own.pop("kind")), own.pop("take"), own.pop("shard")
    corpus = make(**own)
    corpus = corpus if take is None else corpus.take(take)
    return corpus if shard is None else corpus.shard(*shard)


def _recipe(table: Mapping[str, Any], rows: Any, asked: Any) -> Any:
    """asked: the hook points at which it is trained, where it has none of its own."""
    from saelab.sae import recipe
    from saelab.training import sweep

    values = dict(table)
    if values["d_in"] is None:
        first = values["hook"] or (_only(rows) if asked is None else sweep.chosen(rows, asked)[0])
        hooks = values["hooks"] or [first]
        values["d_in"] = sum(rows.width(hook) for hook in hooks)
    return recipe(**values)


def _only(rows: Any) -> str:
    if len(rows.hooks) > 1:
        known = ", ".join(map(str, rows.hooks))
        message = f"recipe.hook must be one of {known}. Got none. Pass --recipe.hook {rows.hooks[0]}."
        raise ConfigError(message)
    return str(rows.hooks[0])

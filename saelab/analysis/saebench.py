"""Result files of SAEBench (github.com/adamkarvonen/SAEBench): read into reports, and written of them.

One JSON file an SAE and evaluation: "eval_type_id" (core, sparse_probing, absorption_first_letter, scr, tpp,
RAVEL, ...), "eval_config", "eval_result_metrics" (category -> metric -> number), "eval_result_details" (flat
objects) and what the SAE is. They hold no control and no interval, so that their figures are `Alone`.

A metric that is defined as one of our scores stands under its name; every other keeps its own. So SAEBench's
explained_variance is not 1 - fvu: its code takes the square of the mean square of all elements in place of
the squared mean of each, and its mse divides by the number of tokens once more (core/main.py).
"""

from __future__ import annotations

import math
import time
import uuid
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, NoReturn

from saelab.analysis import report_json
from saelab.analysis.controls import Alone
from saelab.analysis.report import Report, Scores
from saelab.analysis.reports import Reports
from saelab.analysis.suites.registry import Found
from saelab.arguments import checked, having, place, text
from saelab.config import is_number
from saelab.files import read_json, write_json
from saelab.types import FormatError, StoreError, short

if TYPE_CHECKING:
    import pandas as pd

SUFFIX = "_eval_results.json"
REMEDY = "Pass a file or folder that SAEBench wrote."
WHY = "published without one"
MISSING = -1.0
"""What SAEBench's core evaluation writes for what was not measured."""
SAME = {
    "l0": ("sparsity", "l0"),
    "l1": ("sparsity", "l1"),
    "cosine": ("reconstruction_quality", "cossim"),
    "relative_bias": ("shrinkage", "relative_reconstruction_bias"),
    "loss": ("model_performance_preservation", "ce_loss_with_sae"),
    "loss_recovered_zero": ("model_performance_preservation", "ce_loss_score"),
    "kl": ("model_behavior_preservation", "kl_div_with_sae"),
    "kl_recovered_zero": ("model_behavior_preservation", "kl_div_score"),
}
"""Our score -> category and metric of the core that mean the same."""
ALIVE = ("misc_metrics", "frac_alive")
"""1 - dead."""
CLEAN = ("model_performance_preservation", "ce_loss_without_sae")
ZEROED = ("model_performance_preservation", "ce_loss_with_ablation")
ROWS = ("token_stats", "total_tokens_eval_sparsity_variance")
METRICS = {
    "model_behavior_preservation": ("kl_div_score", "kl_div_with_ablation", "kl_div_with_sae"),
    "model_performance_preservation": (
        "ce_loss_score", "ce_loss_with_ablation", "ce_loss_with_sae", "ce_loss_without_sae"
    ),
    "reconstruction_quality": ("explained_variance", "explained_variance_legacy", "mse", "cossim"),
    "shrinkage": ("l2_norm_in", "l2_norm_out", "l2_ratio", "relative_reconstruction_bias"),
    "sparsity": ("l0", "l1"),
    "token_stats": ("total_tokens_eval_reconstruction", "total_tokens_eval_sparsity_variance"),
    "misc_metrics": (
        "freq_over_1_percent", "freq_over_10_percent", "normalized_freq_over_1_percent",
        "normalized_freq_over_10_percent", "average_max_encoder_cosine_sim",
        "average_max_decoder_cosine_sim", "frac_alive",
    ),
}  # fmt: skip
"""Every metric of its core, all of which a file must have."""


@checked(path=place)
def read_saebench(path: str | Path) -> Reports:
    """Results that SAEBench wrote, as reports that stand in one table with ours.

    Their figures are `Alone`, without interval, and of rows of their own: `Reports.frontier` does not compare
    them with others. A file that `write_saebench` wrote gives the whole report that it was written of.

    Args:
        path: A file, or a folder (such as eval_results) with files *_eval_results.json anywhere below it.

    Returns:
        The reports by "release/SAE", each with all evaluations of it that were found.

    Raises:
        StoreError: It cannot be read, or there is no such file.
        FormatError: A file is something else, or an SAE has one evaluation twice.
    """
    path = Path(path)
    files = sorted(path.rglob(f"*{SUFFIX}")) if path.is_dir() else [path]
    if not files:
        message = f"A folder of SAEBench must hold files *{SUFFIX}. Got none in {path}. {REMEDY}"
        raise StoreError(message)
    found: dict[str, Report] = {}
    for file in files:
        name, report = _read(file)
        found[name] = report if name not in found else _joined(found[name], report, file)
    return Reports(found)


@checked(report=having("a report", "Pass what saelab.evaluate gives.", "claims"), path=place, name=text,
         model=text, dataset=text)  # fmt: skip
def write_saebench(
    report: Report, path: str | Path, *, name: str, model: str = "", dataset: str = ""
) -> Path:
    """Write the core of a report as SAEBench writes its own; the whole report goes along beside it.

    What saelab has not measured, or measures otherwise, is -1, as SAEBench writes what it has not measured;
    only explained_variance is 1 - fvu, by its description (its code computes something else).

    Args:
        report: Of one SAE.
        path: The file; SAEBench calls it eval_results/core/RELEASE_SAE_eval_results.json.
        name: What the SAE is called.
        model: The subject's name.
        dataset: The corpus's.

    Returns:
        The path.

    Raises:
        StoreError: It cannot be written.
    """
    values = {name: claim.value for name, claim in report.claims.items()}
    metrics: dict[str, dict[str, Any]] = {
        category: dict.fromkeys(names, MISSING) for category, names in METRICS.items()
    }
    for ours, (category, metric) in SAME.items():
        metrics[category][metric] = _written(values.get(ours))
    if not math.isnan(values.get("dead", math.nan)):
        metrics[ALIVE[0]][ALIVE[1]] = 1 - values["dead"]
    if not math.isnan(values.get("fvu", math.nan)):
        metrics["reconstruction_quality"]["explained_variance"] = 1 - values["fvu"]
    metrics[CLEAN[0]][CLEAN[1]] = _written(report.loss_clean)
    metrics[ZEROED[0]][ZEROED[1]] = _written(report.loss_zeroed)
    for total in METRICS["token_stats"]:
        metrics["token_stats"][total] = report.n_rows
    about = dict(report.about)
    data = {
        "eval_type_id": "core",
        "eval_config": {
            "model_name": model,
            "dataset": dataset,
            "compute_kl": "kl" in values,
            "compute_ce_loss": "loss" in values,
            "compute_sparsity_metrics": True,
            "compute_variance_metrics": True,
        },
        "eval_id": str(uuid.uuid4()),
        "datetime_epoch_millis": int(time.time() * 1000),
        "eval_result_metrics": metrics,
        "eval_result_details": [],
        "sae_bench_commit_hash": "",
        "sae_lens_id": name,
        "sae_lens_release_id": "saelab",
        "sae_lens_version": None,
        "sae_cfg_dict": {"architecture": about.get("recipe", ""), "hook_name": report.hook, **about},
        "eval_result_unstructured": {"saelab": report_json.plain(report)},
    }
    write_json(path, data)
    return Path(path)


def _known(value: float | None) -> float | None:
    return None if value is None or value == MISSING or math.isnan(value) else value


def _written(value: float | None) -> float:
    return MISSING if value is None or not math.isfinite(value) else float(value)


def _read(path: Path) -> tuple[str, Report]:
    """The SAE's name and what one file says of it."""
    data = read_json(path, "SAEBench result", remedy=REMEDY, nan=True)
    kind, metrics = data.get("eval_type_id"), data.get("eval_result_metrics")
    if not isinstance(kind, str) or not isinstance(metrics, dict):
        _refuse(path, "must have eval_type_id and eval_result_metrics", short(sorted(data)))
    release, sae = (str(data.get(key) or "") for key in ("sae_lens_release_id", "sae_lens_id"))
    name = "/".join(filter(None, (release, sae))) or path.name.removesuffix(SUFFIX)
    own = data.get("eval_result_unstructured")
    if isinstance(own, dict) and "saelab" in own:
        return name, report_json.report_of(Report, own["saelab"], path)
    report_json.check_text(data, 0)
    flat = _flat(path, metrics)
    ours: dict[str, Alone] = {}
    claims: dict[str, Alone] = {}
    left_out: dict[str, str] = {}
    names = {place: our for our, place in SAME.items()} if kind == "core" else {}
    for (category, metric), value in flat.items():
        twice = sum(other == metric for _, other in flat) > 1
        shown = f"{category}.{metric}" if twice else metric
        if value is None or math.isnan(value) or (kind == "core" and value == MISSING):
            left_out[shown] = "not in the published file"
        elif (category, metric) in names:
            ours[names[category, metric]] = Alone(value, WHY)
        elif kind == "core" and (category, metric) == ALIVE:
            ours["dead"] = Alone(1 - value, WHY)
        elif category != ROWS[0]:
            claims[shown] = Alone(value, WHY)
    suite = f"saebench {kind}"
    details = _details(path, data.get("eval_result_details"))
    config = data.get("eval_config")
    told = config if isinstance(config, dict) else {}
    clean, zeroed, rows = (flat.get(at) if kind == "core" else None for at in (CLEAN, ZEROED, ROWS))
    known = {our: ours[our].value if our in ours else math.nan for our in ("l0", "dead", "loss")}
    return name, Report(
        hook=_hook(data, sae),
        n_rows=int(rows) if rows is not None and 0 <= rows < math.inf else 0,
        loss_clean=_known(clean),
        loss_ablated=None,
        sae=Scores(math.nan, known["l0"], known["dead"], known["loss"] if "loss" in ours else None),
        untrained=Scores(math.nan, math.nan, math.nan),
        scores=ours,
        left_out={f"{suite}: {each}": why for each, why in left_out.items()},
        suites={suite: Found(claims, left_out, details)},
        loss_zeroed=_known(zeroed),
        rows=f"SAEBench: {short(str(told.get('dataset', 'unknown')))}",
        about=_about(data, release, sae),
        options={suite: {key: value if _is_plain(value) else short(value) for key, value in told.items()}},
    )


def _joined(one: Report, other: Report, path: Path) -> Report:
    """Two evaluations of one SAE."""
    if set(one.suites) & set(other.suites) or not other.suites or not one.suites:
        _refuse(path, "must be the only one of its SAE and evaluation", f"{short(list(other.suites))} again")
    core = other if other.scores else one
    both = {
        name: {**getattr(one, name), **getattr(other, name)} for name in ("left_out", "suites", "options")
    }
    return Report(**{**vars(core), **both})


def _flat(path: Path, metrics: Mapping[str, Any]) -> dict[tuple[str, str], float | None]:
    """(category, metric) -> number."""
    found: dict[tuple[str, str], float | None] = {}
    for category, each in metrics.items():
        if not isinstance(each, dict):
            _refuse(path, "must have metrics by category", f"{short(each)} as {category!r}")
        for metric, value in each.items():
            if value is not None and not (
                is_number(value) and (isinstance(value, float) or abs(value) < 2**63)
            ):
                _refuse(path, "must have metrics that are numbers", f"{short(value)} as {metric!r}")
            found[category, metric] = None if value is None else float(value)
    return found


def _details(path: Path, details: Any) -> dict[str, pd.DataFrame]:
    """What lies behind the metrics, by SAE latent, data set or letter."""
    import pandas as pd

    if not details:
        return {}
    if not isinstance(details, list) or not all(isinstance(each, dict) for each in details):
        _refuse(path, "must have eval_result_details that are a list of objects", short(details))
    flat = [{key: each for key, each in line.items() if _is_plain(each)} for line in details]
    return {"details": pd.DataFrame(flat)} if any(flat) else {}


def _about(data: Mapping[str, Any], release: str, sae: str) -> dict[str, str | int]:
    config = data.get("sae_cfg_dict")
    config = config if isinstance(config, dict) else {}
    said: dict[str, Any] = {
        "published by": "SAEBench",
        "release": release,
        "sae": sae,
        "recipe": config.get("architecture"),
        "d_in": config.get("d_in"),
        "d_sae": config.get("d_sae"),
    }
    return {key: each for key, each in said.items() if type(each) in (str, int)}


def _hook(data: Mapping[str, Any], sae: str) -> str:
    """Where the SAE reads; its name tells it where the file does not."""
    config = data.get("sae_cfg_dict")
    config = config if isinstance(config, dict) else {}
    metadata = config.get("metadata")
    told = [config.get("hook_name"), metadata.get("hook_name") if isinstance(metadata, dict) else None]
    return next((each for each in told if isinstance(each, str) and each), sae.split("__")[0] or "unknown")


def _is_plain(value: Any) -> bool:
    return value is None or isinstance(value, bool | str) or (is_number(value) and math.isfinite(value))


def _refuse(path: Path, rule: str, got: str) -> NoReturn:
    message = f"A result of SAEBench {rule}. Got {got} in {path}. {REMEDY}"
    raise FormatError(message)


__all__ = ["read_saebench", "write_saebench"]

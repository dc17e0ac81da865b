"""Result files of SAEBench: what is published stands in our table, what we write passes for its own.

The schema is written anew after the fields of its pydantic models (base_eval_output.py, core/eval_output.py
and core/eval_config.py of SAEBench 0.6.0); the figures of the files below are those of its own tests.
"""

from __future__ import annotations

import json
import math

import jsonschema
import mutations
import pytest
import torch

import saelab
from saelab.analysis import Report, Reports, evaluate, read_report, read_saebench, write_saebench
from saelab.analysis.controls import Alone
from saelab.analysis.frontier import frontier
from saelab.types import ConfigError, FormatError, SaelabError, StoreError

RELEASE, SAE = "sae_bench_pythia70m_sweep_topk_ctx128_0730", "blocks.4.hook_resid_post__trainer_10"
NAME = f"{RELEASE}/{SAE}"


def _flat(**kinds):
    return {
        "type": "object",
        "properties": {k: {"type": t} for k, t in kinds.items()},
        "required": list(kinds),
    }


def _numbers(names):
    return _flat(**dict.fromkeys(names.split(), "number"))


CORE = {
    "type": "object",
    "properties": {
        "eval_type_id": {"const": "core"},
        "eval_config": {
            "type": "object",
            "properties": {
                **{name: {"type": "string"} for name in ("model_name", "llm_dtype", "dataset")},
                **{
                    name: {"type": "integer"}
                    for name in (
                        "batch_size_prompts",
                        "n_eval_reconstruction_batches",
                        "n_eval_sparsity_variance_batches",
                        "context_size",
                    )
                },
                **{
                    name: {"type": "boolean"}
                    for name in (
                        "compute_kl",
                        "compute_ce_loss",
                        "compute_l2_norms",
                        "compute_sparsity_metrics",
                        "compute_variance_metrics",
                        "compute_featurewise_density_statistics",
                        "compute_featurewise_weight_based_metrics",
                        "exclude_special_tokens_from_reconstruction",
                        "verbose",
                    )
                },
            },
            "additionalProperties": False,
        },
        "eval_id": {"type": "string"},
        "datetime_epoch_millis": {"type": "integer", "minimum": 0, "maximum": 9999999999999},
        "eval_result_metrics": {
            "type": "object",
            "properties": {
                "model_behavior_preservation": _numbers("kl_div_score kl_div_with_ablation kl_div_with_sae"),
                "model_performance_preservation": _numbers(
                    "ce_loss_score ce_loss_with_ablation ce_loss_with_sae ce_loss_without_sae"
                ),
                "reconstruction_quality": _numbers("explained_variance explained_variance_legacy mse cossim"),
                "shrinkage": _numbers("l2_norm_in l2_norm_out l2_ratio relative_reconstruction_bias"),
                "sparsity": _numbers("l0 l1"),
                "token_stats": _flat(
                    total_tokens_eval_reconstruction="integer", total_tokens_eval_sparsity_variance="integer"
                ),
                "misc_metrics": _numbers(
                    "freq_over_1_percent freq_over_10_percent normalized_freq_over_1_percent "
                    "normalized_freq_over_10_percent average_max_encoder_cosine_sim "
                    "average_max_decoder_cosine_sim frac_alive"
                ),
            },
        },
        "eval_result_details": {"type": "array"},
        "sae_bench_commit_hash": {"type": "string"},
        **{
            name: {"type": ["string", "null"]}
            for name in ("sae_lens_id", "sae_lens_release_id", "sae_lens_version")
        },
        "sae_cfg_dict": {"type": ["object", "null"]},
    },
}
CORE["required"] = list(CORE["properties"])
CORE["properties"]["eval_result_metrics"]["required"] = list(
    CORE["properties"]["eval_result_metrics"]["properties"]
)


def published(kind: str, metrics: dict, details: list | None = None, **changes) -> dict:
    """A result as SAEBench writes it."""
    config = {
        "architecture": "standard",
        "d_in": 512,
        "d_sae": 16384,
        "hook_name": "blocks.4.hook_resid_post",
    }
    return {
        "eval_type_id": kind,
        "eval_config": {"model_name": "pythia-70m-deduped", "dataset": "Skylion007/openwebtext"},
        "eval_id": "8440a524-e625-4e9d-9520-adbbaf78e2b9",
        "datetime_epoch_millis": 1730845942350,
        "eval_result_metrics": metrics,
        "eval_result_details": details or [],
        "sae_bench_commit_hash": "c0f54314bc8a8eba515c056e4d1175902f0f7f95",
        "sae_lens_id": SAE,
        "sae_lens_release_id": RELEASE,
        "sae_lens_version": "5.5.2",
        "sae_cfg_dict": config,
        "eval_result_unstructured": None,
        **changes,
    }


def core() -> dict:
    """Its own expected figures of the core; what was not computed is -1."""
    return published(
        "core",
        {
            "model_behavior_preservation": dict.fromkeys(
                ("kl_div_score", "kl_div_with_ablation", "kl_div_with_sae"), -1.0
            ),
            "model_performance_preservation": {
                "ce_loss_score": 0.9975534586157891,
                "ce_loss_with_ablation": 13.076581954956055,
                "ce_loss_with_sae": 4.714137554168701,
                "ce_loss_without_sae": 4.693628311157227,
            },
            "reconstruction_quality": {
                "explained_variance": 0.9858025908470154,
                "mse": 0.002910538576543331,
                "cossim": 0.996256411075592,
            },
            "sparsity": {"l0": 376.97979736328125, "l1": 190.43234252929688},
            "token_stats": {
                "total_tokens_eval_reconstruction": 2560,
                "total_tokens_eval_sparsity_variance": 10240,
            },
            "misc_metrics": {"frac_alive": 0.75},
        },
        [{"index": 0, "feature_density": 0.0, "encoder_bias": -0.04199}],
    )


def written(folder, kind, data):
    path = folder / kind / f"{RELEASE}_{SAE}_eval_results.json"
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(data))
    return path


@pytest.fixture
def results(tmp_path):
    """eval_results of one SAE, of five kinds."""
    folder = tmp_path / "eval_results"
    written(folder, "core", core())
    absorbed = {
        "mean": {"mean_absorption_fraction_score": 0.26319767885752665, "mean_num_split_features": 1.3}
    }
    letters = [{"first_letter": c, "num_split_features": i} for i, c in enumerate("ab")]
    written(folder, "absorption", published("absorption_first_letter", absorbed, letters))
    sparse = {"sae_top_1_test_accuracy": 0.7744, "sae_top_2_test_accuracy": None}
    probed = {"llm": {"llm_test_accuracy": 0.9516}, "sae": sparse}
    written(folder, "sparse_probing", published("sparse_probing", probed))
    written(folder, "tpp", published("tpp", {"tpp_metrics": {"tpp_threshold_10_total_metric": 0.1469}}))
    ravel = {"ravel": {"cause_score": 0.5903865782541796, "isolation_score": math.nan}}
    written(folder, "ravel", published("RAVEL", ravel))
    return folder


def test_all_evaluations_of_a_published_sae_are_one_report(results):
    reports = read_saebench(results)
    assert list(reports.reports) == [NAME]
    report = reports[NAME]
    assert (report.hook, report.n_rows, report.loss_clean) == (
        "blocks.4.hook_resid_post",
        10240,
        4.693628311157227,
    )
    assert report.loss_zeroed == 13.076581954956055
    values = {name: claim.value for name, claim in report.claims.items()}
    assert values["l0"] == report.sae.l0 == 376.97979736328125
    assert values["loss"] == report.sae.loss == 4.714137554168701
    assert values["loss_recovered_zero"] == 0.9975534586157891
    assert values["cosine"] == 0.996256411075592
    assert values["dead"] == 0.25
    assert values["saebench core: explained_variance"] == 0.9858025908470154
    assert values["saebench absorption_first_letter: mean_absorption_fraction_score"] == 0.26319767885752665
    assert values["saebench sparse_probing: sae_top_1_test_accuracy"] == 0.7744
    assert values["saebench tpp: tpp_threshold_10_total_metric"] == 0.1469
    assert values["saebench RAVEL: cause_score"] == 0.5903865782541796
    # other formulas than ours, under names of their own; neither is what was not measured
    assert not {"fvu", "mse", "kl", "saebench RAVEL: isolation_score"} & set(values)
    for name in (
        "core: kl_div_with_sae",
        "RAVEL: isolation_score",
        "sparse_probing: sae_top_2_test_accuracy",
    ):
        assert report.left_out[f"saebench {name}"] == "not in the published file"
    assert all(
        isinstance(claim, Alone) and "published without one" in str(claim) for claim in report.claims.values()
    )
    assert list(report.suites["saebench absorption_first_letter"].tables["details"]["first_letter"]) == [
        "a",
        "b",
    ]
    assert report.about["d_sae"] == 16384
    assert report.options["saebench core"]["dataset"] == "Skylion007/openwebtext"


@pytest.fixture(scope="module")
def ours():
    subject = saelab.load_subject(str(saelab.embedded.model_folder()))
    sae = saelab.load_sae(saelab.embedded.sae_folder(saelab.embedded.STORE_HOOK))
    return evaluate(sae, subject, saelab.corpora.world(seed=7, n_documents=12), max_rows=200)


def test_published_results_stand_in_the_table_and_are_not_compared(results, ours, tmp_path):
    both = Reports({**read_saebench(results).reports, "mine": ours})
    lines = both.to_frame().set_index(["score", "sae"])
    assert lines.loc[("l0", NAME), "value"] == 376.97979736328125
    assert math.isnan(lines.loc[("l0", NAME), "from"])
    assert lines.loc[("l0", "mine"), "beside"] == "untrained SAE"
    assert lines.loc[("loss", "mine"), "from"] < lines.loc[("loss", "mine"), "to"]
    assert both.frontier is None
    with pytest.raises(ConfigError, match="same texts"):
        frontier({name: [report] for name, report in both.reports.items()})
    again = read_report(both.save(tmp_path / "both.json"))
    assert again[NAME].claims == both[NAME].claims


def test_what_we_write_is_a_core_result_of_saebench(ours, tmp_path):
    path = write_saebench(ours, tmp_path / "core" / "mine_eval_results.json", name="mine", model="world")
    data = json.loads(path.read_text())
    jsonschema.validate(data, CORE)
    metrics = data["eval_result_metrics"]
    assert metrics["sparsity"]["l0"] == ours.sae.l0
    assert metrics["reconstruction_quality"]["explained_variance"] == 1 - ours.sae.fvu
    assert metrics["reconstruction_quality"]["mse"] == -1  # which is divided by the rows once more there
    assert metrics["misc_metrics"]["frac_alive"] == 1 - ours.sae.dead
    assert metrics["model_performance_preservation"]["ce_loss_with_sae"] == ours.sae.loss
    assert metrics["model_performance_preservation"]["ce_loss_without_sae"] == ours.loss_clean
    assert metrics["model_performance_preservation"]["ce_loss_with_ablation"] == ours.loss_zeroed
    assert metrics["model_behavior_preservation"]["kl_div_with_sae"] == ours.scores["kl"].value
    assert data["sae_cfg_dict"]["d_sae"] == ours.about["d_sae"]
    # and comes back with its controls and intervals
    assert read_saebench(path)["saelab/mine"].claims == ours.claims


def test_without_a_loss_it_is_minus_one(tmp_path):
    sae = saelab.SAE.create(saelab.recipe("topk", d_in=4, d_sae=8, k=2), rows=torch.randn(50, 4))
    report = evaluate(sae, torch.randn(60, 4))
    path = write_saebench(report, tmp_path / "x_eval_results.json", name="x")
    data = json.loads(path.read_text())
    jsonschema.validate(data, CORE)
    assert set(data["eval_result_metrics"]["model_performance_preservation"].values()) == {-1.0}
    assert not data["eval_config"]["compute_ce_loss"]


def test_the_schema_refuses_what_lacks_a_metric():
    data = core()
    with pytest.raises(jsonschema.ValidationError):
        jsonschema.validate(data, CORE)


def test_what_is_no_result_is_refused(tmp_path, results):
    with pytest.raises(StoreError, match="eval_results"):
        read_saebench(tmp_path / "eval_results" / "none")
    (tmp_path / "empty").mkdir()
    with pytest.raises(StoreError, match=r"_eval_results\.json"):
        read_saebench(tmp_path / "empty")
    for data in ({}, {"eval_type_id": "core"}, core() | {"eval_result_metrics": {"sparsity": {"l0": "many"}}},
                 core() | {"eval_result_metrics": {"sparsity": 3}}, core() | {"eval_result_details": [3]},
                 core() | {"sae_lens_id": "\ud800"},
                 core() | {"eval_result_unstructured": {"saelab": {"hook": "x"}}}):  # fmt: skip
        with pytest.raises(FormatError):
            read_saebench(written(tmp_path, "bad", data))
    written(results, "again", core())
    with pytest.raises(FormatError, match=r"saebench core.* again"):
        read_saebench(results)


def test_damaged_results_are_refused_or_read(results, tmp_path):
    read = 0
    for seed in range(300):
        said = mutations.mutate(results / "core", tmp_path / "bad", seed)
        try:
            found = read_saebench(tmp_path / "bad")
        except SaelabError:
            continue
        except Exception as error:
            msg = f"seed {seed}: {said}"
            raise AssertionError(msg) from error
        read += 1
        str(found)
        (report,) = found.reports.values()
        assert Report.from_json(report.to_json()).to_json() == report.to_json()
    assert 20 < read < 200

"""Every public function and class as a call with right arguments, for `fuzzing.argument`; beside them the
public names that are not tried, each with the reason."""

from __future__ import annotations

import inspect
import itertools
import json
import shutil
from collections.abc import Callable, Iterator
from fnmatch import fnmatchcase
from functools import cached_property, partial
from pathlib import Path
from types import ModuleType
from typing import Any, NamedTuple

import exported
import graphed
import headed
import headvis
import numpy as np
import subjects_zoo as zoo
import torch
from guarded import entered, spliced, without_ray
from letters import TEXTS, Letters, Planted

import saelab
from saelab import analysis, corpora, embedded, formats, interventions, stores, subjects, training, types
from saelab.stores import ActivationStore, FeatureStore
from saelab.training import Run
from saelab.widgets import Selection, page

PACKAGES = (
    saelab, analysis, saelab.compat, corpora, formats, saelab.harvesting, interventions, saelab.sae, stores,
    subjects, training, types,
)  # fmt: skip
UNTRIED = {
    "HasHeads HasLogits HasLoss HasPictures HasTargets HasTokens Generates Resumes Intervention Subject "
    "*.HasLogits": (
        "protocols"
    ),
    "Concept Concepts* Examples Examples.* FeatureCard Found LatentStats* LatentTable LogitLens* Match "
    "LatentMap* LatentColumn Changed Difference* Layer Predictions* MapProgress Relatives* "
    "NormDiagnostics* Point* Recovery RecoveryScores Recovery.* Report Report.to_frame Report.to_json "
    "Reports Reports.by_recipe "
    "Reports.figure Reports.to_frame Reports.to_json Scores SpecialTokens* TokenScores "
    "Origin "
    "SampleCodes SampleCodes.to_frame SampleCodes.parts Frontier Frontier.figure Frontier.to_frame Listed "
    "Sniffed TensorInfo Forward SyntheticRows Synthetic Example RowRecord Estimate Event Record* Run "
    "Run.figure Run.to_frame TensorBoard WandB Settings ActivationBatch Shown Scale Edit Edit.to_dict "
    "Compared Compared.* DarkMatter DarkMatter.figure DarkMatter.to_frame ErrorParts ErrorScaling* Losses "
    "Pair "
    "Arm Choice Contrast Effect Effect.figure Effect.frontier Effect.table Effect.to_frame Figure GateCurve "
    "GateCurve.figure GateCurve.to_frame Selected Selected.figure Selected.to_frame TokenShift "
    "DFA DFA.to_frame Branch* Edge EdgeChanges* EdgeEffects EdgeEffects.of EdgeEffects.to_frame "
    "HeadAttribution HeadAttribution.to_frame HeadLosses* "
    "HeadEffects* RecursiveDFA* Families* HeadRoles* InductionScores* PrefixCurves* Proxy "
    "HeadExamples HeadExamples.to_frame HeadMeasure HeadSequence* OneHead TokenShare* "
    "Agreement.to_frame AttributeF1.to_frame Circuit.to_frame Example.to_frame FeatureCard.to_frame "
    "LatentColumn.to_frame LatentTable.to_frame Match.to_frame *.drawings *.panels "
    "DocumentRecord* Option Recipe* Splices* Step Adapted Adapting* Adapted.to_frame": (
        "what functions give, and take no arguments or only right ones"
    ),
    "Codes* Inputs Context Sparse* FVU.over_ranks ActivationStore FeatureStore ActivationWriter* SAEConfig": (
        "made by the library, of what it has checked"
    ),
    "SAE.attach SAE.b_in SAE.centred SAE.check_parameters SAE.largest SAE.normalised SAE.product SAE.restore "
    "SAE.scale SAE.some_pre SAE.target *.padded *.prime *.read *.stretch *.seen FeatureStore.need_codes": (
        "called by the library, with what it has checked"
    ),
    "to_saelens from_saelens to_dictionary_learning from_dictionary_learning": (
        "need another library or its objects; tests/unit/test_compat.py refuses others"
    ),
    "SAE.push_to_hub": "needs a network; tests/unit/test_hub.py has a server",
    "WandB": "needs its library",
    "start_map MapJob*": "begins a process; tests/unit/test_map_jobs.py has some",
    "Lab.compare compare": "need two SAEs; tests/unit/test_compare.py has them",
    "Lab.blindspots": "needs what blindspots gives; tests/unit/test_blindspots_view.py refuses others",
    "prompt_task activation_patching attribution_patching circuit agreement head_codes important "
    "path_patching edge_attribution head_edges freeze frozen read_truths": (
        "need a model with heads and a task; tests/unit/test_circuits.py, test_circuit_edges.py and "
        "test_circuit_truth.py have them"
    ),
    "Fact": "a tuple of four texts; tests/unit/test_ravel.py refuses others",
    "scene_facts relation_facts": "need a tokenizer, or files; tests/unit/test_ravel.py refuses",
    "attributed_prompts attribute_task against_supervised occlusion over_splitting": (
        "need a tokenizer, a model that does a task, or trainings; tests/unit/test_supervised.py refuses"
    ),
    "AttributedPrompts AttributeTask AttributeTask.* AgainstSupervised AgainstSupervised.* AttributeF1 "
    "Edited Stood Stood.* Location SupervisedDictionary SupervisedDictionary.*": (
        "what these give; tests/unit/test_supervised.py refuses what they are not asked for"
    ),
    "Agreement Circuit CodeTest* Effects Effects.* HeadCodes* HeadEdge* Node Roc Task Task.* Truth*": (
        "what these give; tests/unit/test_circuit_measures.py refuses"
    ),
    "AttributionGraph AttributionGraph.* GraphNode": "made by the library; what takes arguments is tried",
    "Classical.* Probing.* Absorption.* TPP.* SCR.* RAVEL.* Splitting.* Stability.* Unlearning.*": (
        "run by evaluate; tests/unit/test_probing.py, test_absorption.py, test_removing.py, test_ravel.py, "
        "test_splitting.py, test_stability.py and test_unlearning.py refuse"
    ),
    "watch": "reads whatever is there; tests/unit/test_watching.py refuses",
    "Lab.steer": "needs a model that writes texts; tests/unit/test_steer_view.py has one",
    "Lab.map Lab.corpus *.telling": "ask what is tried by itself; tests/unit/test_map_view.py and others",
    "Lab.board": "holds views, whose methods are tried; tests/unit/test_board.py has some",
    "Lab.heads head_effects head_readings": (
        "need a model with heads; tests/unit/test_heads_view.py has some"
    ),
    "Lab.report": "takes results alone; tests/unit/test_report_view.py refuses others",
    "Lab.circuit": "takes results alone; tests/unit/test_circuit_view.py refuses others",
    "Lab.erase": "needs samples with a concept; tests/unit/test_erasing.py has some",
    "VisionModel.*": "those of TorchModule, but for what is above, and what test_vision.py tries",
    "document_codes blindspots generator_agreement ontology ood attributes patch_boxes patch_map "
    "DocumentCodes* Blindspots* GeneratorAgreement* Neighbours* Ontology* Spots* OOD* Attributes*": (
        "need two corpora, labels of one, or a layout; tests/unit/test_blindspots.py, test_ontology.py, "
        "test_ood.py and test_image_attributes.py refuse others"
    ),
    "FVU *.fingerprint *.verify *.hooks FeatureStore.latents FeatureStore.labels FeatureStore.top_names "
    "FeatureStore.bottom_names FeatureStore.documents Lab.embedded* recipes names options registered natural "
    "ActivationStore.acts Lab.source": "take nothing, or numbers that another has given",
    "short lacking nearest need check_finite counted": "parts of subjects and edits, which the library calls",
}  # fmt: skip
"""Public names (patterns) that are not tried -> why."""
REFUSED = {
    "sae.register", "scale.harvest", "scale.index", "load_layers", "load_subject", "VisionModel.load",
    "migrate", "row_labels", "special_tokens", "hub", "LanguageModel.chat", "LanguageModel.chat_tokens",
    "VisionModel",
}  # fmt: skip
"""Cases whose own arguments are refused: what they need is too dear here, or there is none."""


class Case(NamedTuple):
    """A function that may be called."""

    call: Callable[..., Any]
    given: dict[str, Any]
    """Right arguments, by name."""
    also: tuple[str, ...] = ()
    """Others that it takes."""


def public() -> set[str]:
    """Names of the public functions, classes and methods, `name` or `Class.method`."""
    found = set()
    for package in PACKAGES:
        for name in package.__all__:
            value = getattr(package, name)
            if isinstance(value, ModuleType | dict) or not callable(value):
                continue
            if not inspect.isclass(value):
                found.add(name)
            elif not issubclass(value, Exception):
                found |= {name, *(f"{name}.{method}" for method in _methods(value))}
    return found


def untried(name: str) -> str | None:
    """Why a public name is not tried."""
    for patterns, why in UNTRIED.items():
        if any(fnmatchcase(name, pattern) for pattern in patterns.split()):
            return why
    return None


def _methods(cls: type) -> Iterator[str]:
    if getattr(cls, "_is_protocol", False):
        return
    foreign = {*dir(torch.nn.Module), *dir(tuple), *dir(object)}
    for name in dir(cls):
        if not name.startswith("_") and name not in foreign and callable(getattr(cls, name)):
            yield name


class Things:
    """A folder with one of each kind of file, and what is made of them."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.subject, self.sae = Letters(), Planted()
        self.store = saelab.index(self.subject, self.sae, TEXTS[:6], folder / "store", progress=False)
        self.store.attach_labels({1: "one", 3: "three"})
        self.acts = saelab.harvest(self.subject, TEXTS[:6], ["h"], folder / "acts", progress=False)
        self.config = saelab.recipe("topk", d_in=6, d_sae=12, k=2, hook="h")
        self.rows = torch.randn(64, 6, generator=torch.Generator().manual_seed(0))
        self.run = self.trained(folder / "run")
        self.trained(folder / "half", stop=3)
        self.run.sae.save(folder / "sae")
        for kind in ("corpus", "edits", "labels", "model"):
            (folder / kind).mkdir()
        shutil.copy(folder / "store" / "documents.parquet", folder / "corpus" / "a.parquet")
        lines = [json.dumps({"text": text, "chat": [{"role": "user", "content": text}]}) for text in TEXTS]
        (folder / "corpus" / "a.jsonl").write_text("\n".join(lines))
        (folder / "corpus" / "a.txt").write_text("\n".join(TEXTS))
        interventions.save(self.edit, folder / "edits" / "edits.json")
        told = [{"modelId": "m", "layer": "0-x", "index": str(j), "description": f"d{j}"} for j in range(9)]
        (folder / "labels" / "batch-0.jsonl").write_text("\n".join(map(json.dumps, told)))
        graphed.calls(folder, folder)
        headvis.written(folder / "headvis")
        exported.batch(folder / "export" / "features", 0, [exported.feature(0, frac_nonzero=0.1)])
        exported.batch(folder / "export" / "activations", 0, [exported.window(0, ["a", "b"], [0.0, 1.0])])
        self.model.model.save_pretrained(folder / "model")
        self.model.tokenizer.save_pretrained(folder / "model")
        (folder / "loop").symlink_to(folder / "loop")
        (folder / "file").write_text("x")
        (folder / "file.jsonl").write_text(json.dumps({"text": "a b", "chat": []}) + "\n")

    def trained(self, out: Path, stop: int | None = None) -> Run:
        """A run of some steps, interrupted after `stop` of them."""

        def callback(event: Any) -> None:
            if event.name == "log" and event.step == stop:
                raise KeyboardInterrupt

        how = {"steps": 6, "batch_size": 16, "checkpoint_every": 2, "log_every": 1, "seed": 0}
        return saelab.train(self.config, self.rows, out=out, progress=False, callbacks=[callback], **how)

    @cached_property
    def model(self) -> saelab.LanguageModel:
        return zoo.language_model("gpt2")

    @cached_property
    def net(self) -> saelab.TorchModule:
        return zoo.cnn_subject()

    @cached_property
    def model_sae(self) -> saelab.SAE:
        config = saelab.recipe("topk", d_in=32, d_sae=16, k=2, hook="blocks.1.hook_resid_post")
        return saelab.SAE.create(config).eval()

    @cached_property
    def adapted(self) -> training.Adapted:
        made = training.adapt(self.model_sae, self.model, TEXTS[:2], steps=1, rank=1, progress=False)
        made.save(self.folder / "adapted")
        return made

    @cached_property
    def dark(self) -> analysis.DarkMatter:
        return analysis.dark_matter(self.run.sae, self.rows)

    @cached_property
    def edit(self) -> interventions.Edit:
        return interventions.Scale(self.model_sae, (1,), 0.5)

    def cases(self, out: Path) -> dict[str, Case]:
        """Every public function by its name; `out` is a place to write to."""
        store = FeatureStore.open(self.folder / "store")
        return {
            **self._made(out), **self._read(out, store), **self._of_store(out, store),
            **self._analyses(store), **self._corpora(), **self._subjects(), **self._edits(out),
            **{name: Case(*each) for name, each in graphed.calls(self.folder, out).items()},
            **self.of_heads,
        }  # fmt: skip

    @cached_property
    def of_heads(self) -> dict[str, Case]:
        return {name: Case(*each) for name, each in headed.calls(self).items()}

    @cached_property
    def report(self) -> analysis.Report:
        return saelab.evaluate(self.run.sae, self.rows)

    @cached_property
    def written(self) -> tuple[Path, Path, str, str]:
        """Files and texts of that report."""
        return (
            self.report.save(self.folder / "report.json"),
            analysis.write_saebench(self.report, self.folder / "saebench.json", name="a"),
            self.report.to_json(),
            analysis.Reports({"a": self.report}).to_json(),
        )

    @cached_property
    def measured(self) -> tuple[analysis.Selected, analysis.GateCurve, analysis.Effect]:
        asked: dict[str, Any] = {"subject": self.model, "draws": 1, "max_new_tokens": 1}
        return (
            analysis.select_latents(self.sae, **self.sides, k=1, subject=self.subject),
            analysis.calibrate_gate(self.gated, *self.sides.values(), subject=self.model),
            analysis.effect(edits=self.edit, samples=["x y"], clean=["z w"], **asked),
        )

    @cached_property
    def gated(self) -> interventions.Erase:
        return interventions.Erase(self.model_sae, (1,), threshold=0.0)

    @property
    def sides(self) -> dict[str, list[str]]:
        words = [*zoo.TEXTS, "a b", "c d", "e f", "g h", "i j"]
        return {"positive": words[:4], "negative": words[4:]}

    def _made(self, out: Path) -> dict[str, Case]:
        fit = {"acts": self.rows, "steps": 2, "batch_size": 8, "progress": False}
        small = {"subject": self.subject, "corpus": TEXTS[:2], "progress": False}
        far = {**small, "subject": Letters}
        sae, tensors = self.run.sae, {**self.run.sae.state_dict()}
        return {
            "recipe": Case(saelab.recipe, {"name": "topk", "d_in": 6, "d_sae": 12, "k": 2}),
            "recipe_options": Case(saelab.sae.recipe_options, {"name": "topk"}),
            "sae.register": Case(partial(saelab.sae.register, "topk"), {"entry": None}),
            "SAE": Case(saelab.SAE, {"config": self.config}),
            "SAE.create": Case(saelab.SAE.create, {"config": self.config}),
            "SAE.from_tensors": Case(
                saelab.SAE.from_tensors, {"config": self.config, "tensors": tensors}
            ),
            "SAE.encode": Case(sae.encode, {"x": torch.ones(2, 6)}),
            "SAE.encode_some": Case(sae.encode_some, {"x": torch.ones(2, 6), "latents": [1]}),
            "SAE.encode_sparse": Case(sae.encode_sparse, {"x": torch.ones(2, 6)}),
            "SAE.decode": Case(sae.decode, {"codes": torch.ones(2, 12)}),
            "SAE.save": Case(sae.save, {"folder": out}),
            "fvu": Case(saelab.sae.fvu, {"x": self.rows, "x_hat": self.rows}),
            "FVU.update": Case(saelab.sae.FVU().update, {"x": self.rows, "x_hat": self.rows}),
            "HookPoint": Case(saelab.HookPoint, {"name": "h"}),
            "HookPoint.of": Case(saelab.HookPoint.of, {"hook": "h"}),
            "save_sae": Case(saelab.save_sae, {"sae": sae, "folder": out, "format": "saelab"}),
            "train": Case(saelab.train, {"config": self.config, "out": out, **fit}),
            "classical": Case(
                training.classical, {"acts": self.rows, "method": "kmeans", "d_sae": 4, "k": 2},
                ("codes", "hook", "max_rows", "iterations", "alpha", "seed"),
            ),
            "with_codes": Case(training.with_codes, {"sae": sae, "codes": "omp", "k": 2}),
            "estimate": Case(training.estimate, {"config": self.config, "steps": 2, "batch_size": 8}),
            "Schedule": Case(training.Schedule, {"shape": "cosine", "warmup": 2, "decay": 0.1, "end": 0.1}),
            "Schedule.over": Case(training.Schedule().over, {"steps": 10}),
            "Schedule.factor": Case(training.Schedule().factor, {"step": 3, "steps": 10}),
            "Whitening": Case(training.Whitening, {"shrinkage": 0.1}),
            "Start": Case(training.Start, {"sae": sae, "taken": "encoder", "trained": "decoder", "noise": 0}),
            "Optimizer": Case(training.Optimizer, {"kind": "adamw", "weight_decay": 0.1}),
            "Objective": Case(training.Objective, {"output": "ce", "weight": 0.5, "later": ["h"]}),
            "end_to_end": Case(
                training.end_to_end,
                {"config": self.model_sae.config, "subject": self.model, "corpus": TEXTS[:2], "out": out,
                 "steps": 1, "batch_size": 4, "progress": False},
            ),
            "adapt": Case(
                training.adapt,
                {"sae": self.model_sae, "subject": self.model, "corpus": TEXTS[:2], "steps": 1, "rank": 1,
                 "progress": False},
            ),
            "Adapted.save": Case(self.adapted.save, {"folder": out}),
            "Adapted.load": Case(
                training.Adapted.load,
                {"folder": self.folder / "adapted", "subject": self.model, "sae": self.model_sae},
            ),
            "learning_rate": Case(training.learning_rate, {"d_sae": 12}),
            "stream": Case(
                lambda **how: next(iter(saelab.stream(**how).batches(8, 0))),
                {"subject": self.subject, "corpus": TEXTS, "hook": "h", "buffer_rows": 16},
                ("batch_size", "packing", "long"),
            ),
            "Run.save": Case(self.run.save, {"folder": out}),
            "harvest": Case(saelab.harvest, {"hooks": ["h"], "out": out, **small}),
            "index": Case(saelab.index, {"sae": self.sae, "out": out, **small}),
            "scale.harvest": Case(without_ray(saelab.scale.harvest), {"hooks": ["h"], "out": out, **far}),
            "scale.index": Case(without_ray(saelab.scale.index), {"sae": self.sae, "out": out, **far}),
        }  # fmt: skip

    def _read(self, out: Path, store: FeatureStore) -> dict[str, Case]:
        sae, tensors = self.folder / "sae", {"h": self.rows}
        return {
            "load_sae": Case(saelab.load_sae, {"path": sae}, ("k", "activation")),
            "load_layers": Case(formats.load_layers, {"path": sae}),
            "sniff": Case(formats.sniff, {"path": sae}),
            "list_saes": Case(formats.list_saes, {"repository_or_folder": sae}),
            "SAE.load": Case(saelab.SAE.load, {"folder": sae}),
            "load_subject": Case(saelab.load_subject, {"name": str(sae)}),
            "VisionModel.load": Case(subjects.VisionModel.load, {"name": str(sae)}),
            "FeatureStore.open": Case(FeatureStore.open, {"folder": self.folder / "store"}),
            "ActivationStore.open": Case(ActivationStore.open, {"folder": self.folder / "acts"}),
            "ActivationStore.create": Case(ActivationStore.create, {"out": out, "acts": tensors}),
            "ActivationStore.rows": Case(self.acts.rows, {"at": [1, 2]}),
            "ActivationStore.width": Case(self.acts.width, {"hook": "h"}),
            "ActivationStore.batches": Case(
                lambda **how: next(iter(self.acts.batches(**how)), None), {"size": 3},
                ("seed", "hook", "shard", "epochs"),
            ),
            "Run.load": Case(Run.load, {"folder": self.folder / "run"}),
            "merge": Case(stores.merge, {"stores": [store], "out": out}),
            "from_neuronpedia": Case(
                stores.from_neuronpedia, {"folder": self.folder / "export", "out": out, "n_rows": 100},
                ("skip", "overwrite"),
            ),
            "migrate": Case(stores.migrate, {"old": self.folder / "store", "out": out}),
            "embedded.sae_folder": Case(embedded.sae_folder, {"hook": embedded.STORE_HOOK}),
            "embedded.store_folder": Case(embedded.store_folder, {"hook": embedded.STORE_HOOK}),
        }  # fmt: skip

    def _of_store(self, out: Path, store: FeatureStore) -> dict[str, Case]:
        lab = saelab.Lab(self.subject, self.sae, store)
        by_latent = ("latent", "tokens", "firings", "partners", "examples", "codes")
        asked: dict[str, dict[str, Any]] = {name: {"latent": 1} for name in by_latent}
        asked |= {
            "rows": {"row": 1}, "document": {"document": 1}, "query": {"sql": "from latents"},
            "search": {"example": "a"}, "compare": {"other": store}, "attach_labels": {"labels": {}},
            "check": {"given": self.sae}, "telling": {"latents": [1]},
        }  # fmt: skip
        found = {f"FeatureStore.{name}": Case(getattr(store, name), given) for name, given in asked.items()}
        shown: dict[str, dict[str, Any]] = {
            "feature": {"latent": 1}, "features": {}, "densities": {}, "card": {"latent": 1},
            "codes": {"sample": "abc"}, "search": {"label": "a"}, "show": {"sample": "abc"},
            "tokens": {"text": "abc"}, "label": {"latent": 1, "text": "x"}, "corpus": {"document": 1},
        }  # fmt: skip
        found |= {
            f"Lab.{name}": Case(getattr(lab, name), given)
            for name, given in shown.items() if hasattr(lab, name)
        }  # fmt: skip
        return found | {
            "Lab": Case(saelab.Lab, {"subject": self.subject, "saes": self.sae, "stores": store}),
            "View.export": Case(lambda path: lab.feature(1).export(path), {"path": out / "page.html"}),
            "Selection": Case(Selection, {"latent": 1}),
            "page": Case(page, {"path": out / "page.html", "title": "a", "sections": []}),
        }

    def _analyses(self, store: FeatureStore) -> dict[str, Case]:
        subject, sae, own, model = self.subject, self.sae, self.run.sae, self.model
        codes = partial(analysis.sample_codes, subject, sae, "abc")
        report, dark, sides, gated = self.report, self.dark, self.sides, self.gated
        saved, saebench, text, texts = self.written
        several = analysis.Reports({"a": report})
        d = np.eye(6, dtype=np.float32)
        truth = corpora.synthetic(6, 12)
        lens = {"sae": self.model_sae, "subject": model}
        asked: dict[str, Any] = {"subject": model, "draws": 1, "max_new_tokens": 1}
        chosen, gate, effect = self.measured
        return {
            "select_latents": Case(
                analysis.select_latents, {"store_or_sae": sae, "subject": subject, "k": 1, **sides}
            ),
            "Selected.check": Case(chosen.check, {"data": ["new"]}),
            "calibrate_gate": Case(
                analysis.calibrate_gate,
                {"edit": gated, "clean": sides["positive"], "target": sides["negative"], "subject": model},
            ),
            "GateCurve.check": Case(gate.check, {"data": ["new"]}),
            "effect": Case(analysis.effect, {"edits": self.edit, "samples": ["x y"], **asked}),
            "dose_response": Case(
                analysis.dose_response,
                {"make": lambda alpha: self.edit, "alphas": [1.0], "samples": ["x y"], **asked},
            ),
            "side_effects": Case(
                analysis.side_effects, {"subject": model, "edits": self.edit, "clean": ["x y"], "draws": 1}
            ),
            "Effect.arm": Case(effect.arm, {"name": "edit"}),
            "Effect.figure_of": Case(effect.figure_of, {"measure": "kl"}),
            "Effect.beside": Case(effect.beside, {"control": "random direction"}),
            "distinct_n": Case(analysis.distinct_n, {"text": "a b a"}),
            "repetition": Case(analysis.repetition, {"text": "a b a"}),
            "lexicon_count": Case(analysis.lexicon_count, {"text": "a b a", "lexicon": ["a"]}),
            "evaluate": Case(saelab.evaluate, {"sae": own, "subject": self.rows}),
            **{
                name: Case(getattr(analysis, name), {first: self.rows, **rest})
                for name, first, rest in (
                    ("explained_variance", "x", {"x_hat": self.rows}),
                    ("energy", "codes", {"directions": torch.eye(6)}),
                    ("frac_variance_explained", "x", {"x_hat": self.rows}),
                    ("hoyer", "codes", {}),
                    ("collinearity", "directions", {}),
                    ("code_correlation", "codes", {}),
                    ("wasserstein", "codes", {"others": self.rows}),
                    ("frechet", "codes", {"others": self.rows}),
                )
            },
            "Classical": Case(analysis.Classical, {"methods": ("pca",)}, ("d_sae", "rows", "iterations")),
            "Probing": Case(analysis.Probing, {"labels": None}, ("ks", "held_out", "by", "most", "rows")),
            "Absorption": Case(analysis.Absorption, {"examples": 0}, ("words", "held_out", "bar", "rows")),
            "TPP": Case(analysis.TPP, {"labels": None}, ("ns", "held_out", "most", "rows")),
            "RAVEL": Case(analysis.RAVEL, {"facts": None}, ("where", "steps", "pairs", "held_out")),
            "SCR": Case(analysis.SCR, {"labels": None}, ("pairs", "ns", "held_out", "most", "most_pairs")),
            "Splitting": Case(
                analysis.Splitting,
                {"narrower": None},
                ("times", "within", "least", "cosine", "steps", "rows", "batch_size"),
            ),
            "Stability": Case(analysis.Stability, {"others": ()}, ("steps", "rows", "batch_size", "most")),
            "Unlearning": Case(
                analysis.Unlearning,
                {"forget": None},
                ("ns", "strength", "retain", "held_out", "kinds", "rows"),
            ),
            "analysis.evaluate": Case(saelab.evaluate, {**lens, "corpus": zoo.TEXTS[:1], "batch_size": 2}),
            "card": Case(analysis.card, {"store": store, "latent": 1}),
            "cards": Case(analysis.cards, {"store": store, "latents": [1, 2]}),
            "concepts": Case(analysis.concepts, {"store": store, "labels": ["a"] * store.n_rows}),
            "dark_matter": Case(analysis.dark_matter, {"sae": own, "subject": self.rows}),
            "DarkMatter.classes": Case(dark.classes, {"seed": 0}),
            "DarkMatter.parts": Case(dark.parts, {"sae": own, "x": self.rows}),
            "error_scaling": Case(analysis.error_scaling, {"found": {"a": dark, "b": dark}}),
            "gradient_pursuit": Case(
                analysis.gradient_pursuit, {"x": self.rows, "directions": torch.eye(6), "k": 2}
            ),
            "orthogonal_matching_pursuit": Case(
                analysis.orthogonal_matching_pursuit, {"x": self.rows, "directions": torch.eye(6), "k": 2}
            ),
            "nonnegative_least_squares": Case(
                analysis.nonnegative_least_squares, {"x": self.rows, "directions": torch.eye(6)}
            ),
            "attribution_graph": Case(
                partial(analysis.attribution_graph, max_nodes=8),
                {"subject": model, "saes": self.model_sae, "text": "a b"},
                ("target", "minus", "position", "max_logits", "probability", "control", "seed"),
            ),
            "direct_logits": Case(analysis.direct_logits, {**lens, "latents": [1]}),
            "drawn_examples": Case(analysis.drawn_examples, {"store": store, "latent": 1}),
            "examples": Case(analysis.examples, {"store": store, "latent": 1}),
            "relatives": Case(analysis.relatives, {"store": store, "latent": 1}),
            "whole_document": Case(analysis.whole_document, {"store": store, "latent": 1, "row": 0}),
            "frontier": Case(analysis.frontier, {"reports": {"a": [report]}}),
            "Frontier.at": Case(analysis.frontier({"a": [report]}).at, {"l0": 2.0}),
            "Frontier.front": Case(analysis.frontier({"a": [report]}).front, {"score": "fvu"}),
            "latent_table": Case(analysis.latent_table, {"store": store}),
            "latent_column": Case(analysis.latent_column, {"store": store, "sql": "max / mean"}),
            "latent_map": Case(analysis.latent_map, {"store": store, "keep": False}),
            "logit_lens": Case(analysis.logit_lens, {**lens, "latent": 1}),
            "match": Case(analysis.match, {"W_dec": d, "directions": d}),
            "norms": Case(analysis.norms, {"sae": own, "acts": self.rows}),
            "predictions": Case(
                analysis.predictions, {"subject": model, "sample": "x y", "edits": [self.edit]}
            ),
            "read_report": Case(analysis.read_report, {"path": saved}),
            "read_saebench": Case(analysis.read_saebench, {"path": saebench}),
            "write_saebench": Case(
                analysis.write_saebench,
                {"report": report, "path": self.folder / "saved.json", "name": "a"},
                ("model", "dataset"),
            ),
            "Report.from_json": Case(analysis.Report.from_json, {"text": text}),
            "Report.save": Case(report.save, {"path": self.folder / "saved.json"}),
            "Reports.from_json": Case(analysis.Reports.from_json, {"text": texts}),
            "Reports.save": Case(several.save, {"path": self.folder / "saved.json"}),
            "recovery": Case(analysis.recovery, {"sae": own, "truth": truth, "n_rows": 64}),
            "row_labels": Case(analysis.row_labels, {"subject": model, "store": store, "corpus": []}),
            "sample_codes": Case(analysis.sample_codes, {"subject": subject, "sae": sae, "sample": "abc"}),
            "sample_difference": Case(
                analysis.sample_difference,
                {"subject": subject, "sae": sae, "sample": "abc", "against": "abd"},
            ),
            "SampleCodes.of": Case(codes().of, {"latent": 1}),
            "SampleCodes.top": Case(codes().top, {"position": 1}),
            "search": Case(analysis.search, {"subject": subject, "sae": sae, "sample": "abc"}),
            "supervised_dictionary": Case(
                analysis.supervised_dictionary, {"acts": self.rows, "attributes": {"a": ["x", "y"] * 32}}
            ),
            "attribute_f1": Case(analysis.attribute_f1, {"codes": d, "values": ["x"] * len(d)}),
            "special_tokens": Case(
                analysis.special_tokens, {**lens, "corpus": zoo.TEXTS[:1], "packing": "document"}
            ),
        }

    def _corpora(self) -> dict[str, Case]:
        def read(make: Callable[..., Any]) -> Callable[..., Any]:
            return lambda **how: list(itertools.islice(make(**how), 9))

        file, lines = self.folder / "file", self.folder / "file.jsonl"
        corpus = corpora.as_corpus(["a", "b"])
        picture = np.zeros((4, 4, 3), np.uint8)
        document = next(iter(corpus))
        return {
            "text": Case(read(corpora.text), {"paths": file}, ("separator", "encoding")),
            "jsonl": Case(read(corpora.jsonl), {"paths": lines}, ("column", "messages", "encoding")),
            "parquet": Case(
                read(corpora.parquet), {"paths": self.folder / "store" / "documents.parquet"},
                ("column", "messages"),
            ),
            "hub": Case(
                read(corpora.hub), {"name_or_folder": self.folder / "none"},
                ("split", "column", "streaming", "messages", "config", "revision", "data_files"),
            ),
            "world": Case(read(corpora.world), {"n_documents": 2}, ("seed", "split", "families")),
            "as_corpus": Case(read(corpora.as_corpus), {"texts": ["a"]}),
            "dialogues": Case(
                read(corpora.dialogues), {"chats": [[{"role": "user", "content": "a"}]]}, ("name",)
            ),
            "images": Case(
                read(corpora.images), {"items": [picture]},
                ("labels", "ids", "size", "name", "broken", "column", "label", "max_pixels", "workers"),
            ),
            "shapes": Case(read(corpora.shapes), {"n_documents": 2}, ("seed", "split", "size", "shares")),
            "shape_mask": Case(corpora.shape_mask, {"document": next(iter(corpora.shapes(0, 1)))}),
            "samples": Case(read(corpora.samples), {"items": [torch.ones(2)]}, ("name", "ids")),
            "synthetic": Case(corpora.synthetic, {"d_in": 6, "n_features": 12}),
            "Synthetic.rows": Case(corpora.synthetic(6, 12).rows, {"n": 3}),
            "Synthetic.batches": Case(
                lambda **how: next(iter(corpora.synthetic(6, 12).batches(**how)), None), {"size": 3},
                ("n_batches", "start"),
            ),
            "Corpus": Case(read(corpora.Corpus), {"make": lambda: [document], "name": "a"}, ("key",)),
            "Corpus.take": Case(lambda n: list(corpus.take(n)), {"n": 1}),
            "Corpus.shard": Case(lambda i, n: list(corpus.shard(i, n)), {"i": 0, "n": 2}),
            "Document": Case(corpora.Document, {"id": "a", "text": "a"}),
            "Span": Case(corpora.Span, {"start": 0, "end": 1, "label": "a"}),
            "token_labels": Case(corpora.token_labels, {"document": document, "offsets": [(0, 1)]}),
        }  # fmt: skip

    def _subjects(self) -> dict[str, Case]:
        model, net, hook = self.model, self.net, "blocks.1.hook_resid_post"
        inputs, seen = model.prepare(zoo.TEXTS[:1]), net.prepare(zoo.images(1))
        vectors = torch.ones(1, 32)
        asked: dict[str, dict[str, Any]] = {
            "attend": {"inputs": inputs}, "layer_maps": {"layer": 0}, "corpus": {"data": ["a"]},
            "chat_tokens": {"messages": [("user", "a")]},
            "chat": {"messages": [("user", "a")], "max_new_tokens": 1},
            "generate": {"prompt": "a", "max_new_tokens": 1},
            "stream": {"prompt": ["a", "b"], "max_new_tokens": 1}, "hook_point": {"name": hook},
            "label": {"inputs": inputs, "sample": 0, "position": 0}, "loss": {"inputs": inputs},
            "targets": {"inputs": inputs},
            "resume": {
                "inputs": inputs, "block": 1, "stream": torch.ones(*inputs.data["input_ids"].shape, 32),
            },
            "frozen_end": {"x": torch.ones(32)},
            "offsets": {"text": "a"}, "prepare": {"raw": ["a"]}, "prepare_tokens": {"rows": [[1, 2]]},
            "residual_to_logits": {"vectors": vectors}, "run": {"inputs": inputs, "read": [hook]},
            "to_residual": {"hook": hook, "vectors": vectors}, "to_tokens": {"text": "a"},
            "token_strings": {"ids": [1]}, "width": {"hook": hook},
        }  # fmt: skip
        found = {f"LanguageModel.{name}": Case(getattr(model, name), given) for name, given in asked.items()}
        asked = {
            "corpus": {"data": zoo.images(1)}, "hook_point": {"name": "0"},
            "label": {"inputs": seen, "sample": 0, "position": 0}, "prepare": {"raw": zoo.images(1)},
            "run": {"inputs": seen, "read": ["0"]}, "width": {"hook": "0"},
        }  # fmt: skip
        found |= {f"TorchModule.{name}": Case(getattr(net, name), given) for name, given in asked.items()}
        return found | {
            "LanguageModel": Case(saelab.LanguageModel, {"model": model.model, "tokenizer": model.tokenizer}),
            "TorchModule": Case(saelab.TorchModule, {"module": net.module, "example": zoo.images(1)}),
            "VisionModel": Case(saelab.VisionModel, {"model": net.module, "processor": print}),
        }

    def _edits(self, out: Path) -> dict[str, Case]:
        data = self.edit.to_dict()
        sae, hook = self.model_sae, self.model_sae.config.hook
        return {
            "interventions.load": Case(interventions.load, {"source": data, "saes": sae}),
            "interventions.save": Case(interventions.save, {"edits": self.edit, "path": out}),
            "interventions.register": Case(interventions.register, {"kind": "x"}),
            "Scale": Case(interventions.Scale, {"sae": sae, "latents": (1,), "factor": 0.5}),
            "Reconstruct": Case(interventions.Reconstruct, {"sae": sae}),
            "Replace": Case(interventions.Replace, {"hook": hook, "values": torch.ones(1, 2, 32)}),
            "MeanAblate": Case(interventions.MeanAblate, {"hook": hook, "mean": torch.ones(32)}),
            "Steer": Case(interventions.Steer, {"sae": sae, "latent": 1, "alpha": 0.5}),
            "Clamp": Case(interventions.Clamp, {"sae": sae, "latent": 1, "value": 0.5}),
            "Ablate": Case(interventions.Ablate, {"sae": sae, "latents": (1,), "to": "mean", "means": [0.5]}),
            "Swap": Case(interventions.Swap, {"sae": sae, "remove": 1, "add": 2}),
            "Erase": Case(interventions.Erase, {"sae": sae, "latents": (1,), "threshold": 0.5}),
            "Substitute": Case(
                interventions.Substitute,
                {"sae": sae, "latents": (1,), "natural": torch.ones(2, 32), "threshold": 0.5},
            ),
            "AddDirection": Case(interventions.AddDirection, {"hook": hook, "vector": torch.ones(32)}),
            "applied": Case(entered, {"model": self.model, "edits": self.edit}, ("tokenizer",)),
            "spliced": Case(spliced, {"subject": self.model, "saes": {hook: sae}}, ("error", "everywhere")),
            "Each": Case(interventions.Each, {"edits": [self.edit]}),
            "Edit.where": Case(self.edit.where, {"positions": [0]}),
            "mean_difference": Case(
                interventions.mean_difference, {"positive": torch.ones(2, 4), "negative": torch.ones(3, 4)}
            ),
            "probe_direction": Case(
                interventions.probe_direction, {"positive": torch.ones(2, 4), "negative": torch.zeros(3, 4)}
            ),
            "latent_means": Case(interventions.latent_means, {"store": self.store, "latents": [1]}),
        }

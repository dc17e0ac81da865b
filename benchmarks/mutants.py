"""Whether the tests notice: each mutation below breaks one promise of the code, in a copy, and runs the tests
that should fail.

python benchmarks/mutants.py [--only WORD] [--all]

--only: mutations with this word in their name or file. --all: run the whole suite for each, not only the
named tests (hours). Ends with 1 where a mutation is missed, or where its text is no longer in the file.
"""

from __future__ import annotations

import argparse
import os
import re
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import NamedTuple

ROOT = Path(__file__).parents[1]
PARTS = (
    *("saelab", "tests", "widgets", "notebooks", "docs", "tools", "benchmarks"),
    *("pyproject.toml", "Makefile", "README.md", "constraints.txt", "CHANGELOG.md", "LICENSE"),
)


class Mutation(NamedTuple):
    """`old`, found once in `file`, becomes `new`; one of `tests`, files under tests/, should fail."""

    name: str
    file: str
    old: str
    new: str
    tests: str


CONTRACT = "contracts/test_sparsifiers"
SUBJECTS = "contracts/test_subject unit/test_torch_module unit/test_language"
MUTATIONS = [
    # what 381 configurations of the sparsifiers' contract proved, and 90 prove now
    Mutation("TopK keeps negative codes on its fast path", "saelab/sae/sparsifiers.py",
             "else self.k\n\n    def activation(self, pre: Tensor, indices: Tensor) -> Tensor:\n"
             "        return pre.relu()",
             "else self.k\n\n    def activation(self, pre: Tensor, indices: Tensor) -> Tensor:\n"
             "        return pre",
             CONTRACT),
    Mutation("AbsTopK ranks by value, not by size", "saelab/sae/sparsifiers.py",
             "return top_k_csr(pre, self.k, signed=True)", "return top_k_csr(pre, self.k)", CONTRACT),
    Mutation("GroupMax loses the last latent of uneven groups", "saelab/sae/sparsifiers.py",
             ".minimum(starts[1:, None] - 1)", ".minimum(starts[1:, None] - 2).clamp_min(0)", CONTRACT),
    Mutation("layernorm is not undone", "saelab/sae/network.py",
             "return out if scale is None else out * scale.norm + scale.mean",
             "return out if scale is None else out * scale.norm", CONTRACT),
    Mutation("b_dec is always subtracted from the input", "saelab/sae/network.py",
             'if self.config.options.get("apply_b_dec_to_input", False):',
             "if self.config.d_out is None:", CONTRACT),
    Mutation("a constant row divides by zero under layernorm", "saelab/sae/network.py",
             "norm(dim=-1, keepdim=True).clamp_min(1) * size", "norm(dim=-1, keepdim=True) * size", CONTRACT),
    # kernels
    Mutation("ties at the boundary go to any latent", "saelab/sae/kernels.py",
             "    if tied.any():\n        indices = indices.clone()",
             "    if False:\n        indices = indices.clone()", "unit/test_sae"),
    Mutation("the sparse gradient of b_dec has the wrong sign", "saelab/sae/kernels.py",
             "d_b_in = -(W_enc @ d_b_enc)", "d_b_in = W_enc @ d_b_enc", CONTRACT),
    # training
    Mutation("the matryoshka loss leaves out its first prefix", "saelab/training/losses.py",
             "return torch.stack(decoded).cumsum(0)", "return torch.stack(decoded).cumsum(0)[1:]",
             "unit/test_architectures unit/test_parts unit/test_training"),
    Mutation("a latent that fires stays dead", "saelab/training/losses.py",
             "self.since[fired > 0] = 0", "self.since[fired > 1] = 0",
             "unit/test_training unit/test_choices golden/test_golden_training"),
    Mutation("the learning rate does not fall", "saelab/training/moving.py",
             "fall = min(1.0, (steps - step) / decay) if decay else 1.0", "fall = 1.0",
             "unit/test_training unit/test_moving"),
    Mutation("Adam's second moments are not restored", "saelab/training/session.py",
             'if kind not in ("moves", "adam"):', 'if kind not in ("moves", "adam") or "_sq" in rest:',
             "unit/test_architectures unit/test_training_resuming unit/test_killing"),
    Mutation("only the last checkpoint is kept", "saelab/training/checkpoints.py",
             "KEPT = 2\n", "KEPT = 1\n", "unit/test_training_resuming"),
    Mutation("ranks do not add their gradients up", "saelab/training/session.py",
             "        dist.rows.sum_gradients(list(self.parameters.values()))\n", "", "unit/test_dist"),
    # stores
    Mutation("the least value of merged parts is the first part's", "saelab/stores/summaries.py",
             'low, high = extreme("min", np.minimum, np.inf)', "low, high = parts[0].min",
             "unit/test_merging"),
    Mutation("documents of merged parts keep their numbers", "saelab/stores/merging.py",
             '"document": part.number[document] + part.offset}', '"document": part.number[document]}',
             "unit/test_merging"),
    Mutation("examples are the weakest", "saelab/stores/summaries.py",
             "~_bits(np.abs(value))",
             "_bits(np.abs(value))",
             "unit/test_summaries unit/test_feature_store"),
    # files of others
    Mutation("NaN in a file is let in", "saelab/formats/reading.py",
             "if not integral and not is_finite(to):", "if False:", "unit/test_formats"),
    Mutation("a name may lead out of its folder", "saelab/formats/reading.py",
             '        or ".." in parts.parts\n', "",
             "unit/test_formats unit/test_formats_releases"),
    # subjects, harvesting, edits
    Mutation("an edit writes into the tensor that others read", "saelab/subjects/passes.py",
             "new = edit(acts.clone(), context)", "new = edit(acts, context)",
             SUBJECTS),
    Mutation("an edited tensor has other strides", "saelab/subjects/passes.py",
             "flow = _same_layout(view.back(acts, own), own)", "flow = view.back(acts, own)",
             SUBJECTS),
    Mutation("a repeated BOS counts as a row", "saelab/subjects/packing.py",
             "bos = replace(bos, counted=[False] * has_bos)", "pass",
             "unit/test_rows_kept unit/test_packing"),
    Mutation("max_rows is not exact", "saelab/harvesting/batches.py",
             "            yield _cut(batch, left)\n", "            yield batch\n",
             "unit/test_harvesting unit/test_packing"),
    Mutation("the loss recovered ignores the ablation", "saelab/analysis/scores/core.py",
             'sums["loss"]) / (sums["ablated"] - sums["clean"])', 'sums["loss"]) / sums["ablated"]',
             "unit/test_analysis unit/test_scores"),
    Mutation("a latent is a part of itself in an attribution graph", "saelab/analysis/circuits/walking.py",
             'return Place(place.layer - 1, "hook_resid_post")', "return place",
             "unit/test_graph_tracing"),
    Mutation("pruning keeps what leads nowhere", "saelab/analysis/circuits/graphs.py",
             "now = kept & (fixed | edges.any(0)) & (~latent | edges.any(1))",
             "now = kept & (fixed | edges.any(0))",
             "unit/test_graphs"),
    # views, config, command line
    Mutation("a small negative code is quantised to 0", "saelab/widgets/card_windows.py",
             "np.where((values != 0) & (numbers == zero)", "np.where((values > 1e9) & (numbers == zero)",
             "unit/test_widgets"),
    Mutation("an unknown key of a config is passed over", "saelab/config.py",
             "        if key not in known:\n", "        if False:\n", "unit/test_config"),
    Mutation("a job goes on with what another one left", "saelab/stores/manifest.py",
             "    if old == spec:\n        return\n", "    return\n", "unit/test_jobs unit/test_merging"),
    # attributes swapped, and kinds of text forgotten
    Mutation("isolation asks for the answer of the source", "saelab/analysis/suites/ravel.py",
             '("isolation", self.isolation, ~own, cases.base)',
             '("isolation", self.isolation, ~own, cases.source)', "unit/test_ravel"),
    Mutation("masks are learnt on the entities that judge", "saelab/analysis/suites/ravel.py",
             "self.pairs, rng) for side in sides)", "self.pairs, rng) for side in sides[1:] * 2)",
             "unit/test_ravel"),
    Mutation("prompts of other forms are compared", "saelab/analysis/disentangling/asking.py",
             'form = fact.prompt.replace(fact.entity, "\\0")', 'form = ""', "unit/test_ravel"),
    Mutation("the codes of the base are given, not the source's", "saelab/analysis/disentangling/swapping.py",
             "self._codes[source] - self._codes[base]", "self._codes[base] - self._codes[source]",
             "unit/test_ravel"),
    Mutation("latents may fire on what should stay", "saelab/analysis/suites/unlearning.py",
             "np.where(rates[1] < retain, rates[0], 0.0)", "rates[0]", "unit/test_unlearning"),
    Mutation("latents are clamped where they do not fire", "saelab/analysis/suites/unlearning.py",
             "np.where(own != 0, -strength", "np.where(own == own, -strength", "unit/test_unlearning"),
    Mutation("documents that were fitted on judge what is forgotten", "saelab/analysis/suites/unlearning.py",
             "for i in np.flatnonzero(judge).tolist()]", "for i in np.flatnonzero(~judge).tolist()]",
             "unit/test_unlearning"),
    # SAEs that are spliced into a model
    Mutation("a splice's error is no constant", "saelab/interventions/splice.py",
             "_on_grid((y - x_hat).detach(), rows)", "_on_grid(y - x_hat, rows)",
             "unit/test_spliced golden/test_golden_splices"),
    Mutation("a splice lets gradients pass beside the codes", "saelab/interventions/splice.py",
             "return y.detach() + (whole - whole.detach())", "return y + (whole - whole.detach())",
             "unit/test_spliced golden/test_golden_splices"),
    Mutation("a splice loses the scale of the rows", "saelab/interventions/splice.py",
             "self.sae.decode(z, self.sae.scale(x), x)",
             "self.sae.restore(self.sae.product(z), None, x)", "unit/test_spliced"),
    Mutation("a splice puts codes beside their rows", "saelab/interventions/splice.py",
             "at = samples * positions, rows.sample * positions + rows.position",
             "at = samples * positions, rows.position * samples + rows.sample", "unit/test_spliced"),
    Mutation("a splice shows codes of the pass before", "saelab/interventions/splice.py",
             "self._pass = context.shared.setdefault(self, (ByHook(), ByHook()))",
             "context.shared[self] = self._pass", "unit/test_spliced"),
    Mutation("padding is spliced", "saelab/interventions/splice.py",
             "counted=positions_of(acts, context) >= 0)", "counted=None)", "unit/test_spliced"),
    Mutation("two SAEs are spliced into one place", "saelab/interventions/splice.py",
             "        if key in seen:", "        if key is None:", "unit/test_spliced"),
    Mutation("a pass through TransformerBridge goes on unedited", "saelab/subjects/language.py",
             "if id(self.module) in LIVE:", "if self.module in LIVE:", "unit/test_spliced"),
    # what loops counted, and arrays count now
    Mutation("pairs of codes that corrupt prompts have too are counted", "saelab/analysis/circuits/codes.py",
             "found[:, 1:] // 2 != found[:, :-1] // 2", "found[:, 1:] != found[:, :-1]",
             "unit/test_circuits"),
    Mutation("pairs of codes on corrupt prompts alone are counted", "saelab/analysis/circuits/codes.py",
             "(last & (found % 2 == 0)).sum(1)", "last.sum(1)", "unit/test_circuits"),
    Mutation("an area counts ties as lost", "saelab/analysis/circuits/measures.py",
             "below = rankdata(scores, axis=-1)", 'below = rankdata(scores, method="min", axis=-1)',
             "unit/test_circuit_measures"),
    Mutation("equal scores are called one by one", "saelab/analysis/circuits/measures.py",
             'called = rankdata(-scores, method="max", axis=-1)',
             'called = rankdata(-scores, method="ordinal", axis=-1)', "unit/test_circuit_measures"),
    # processes that are forks now, and what is looked at less often
    Mutation("cards stay in a browser's memory", "widgets/shared/cards.js",
             "      place.replaceChildren(element);",
             "      place.replaceChildren(element);\n      (window.kept ??= []).push(element);",
             "browser/test_heap"),
    Mutation("writers of labels and notes do not wait for each other", "saelab/stores/attached.py",
             "fcntl.flock(handle, fcntl.LOCK_EX)", "fcntl.flock(handle, fcntl.LOCK_SH)",
             "unit/test_store_labels unit/test_annotations"),
    Mutation("a manifest lists a file while it is replaced", "saelab/stores/attached.py",
             "            self._list(folder, None)\n", "", "unit/test_store_labels"),
    Mutation("each rank scores every SAE", "saelab/commands/evaluating.py",
             "[dist.ranks.rank :: dist.ranks.size]", "[:]", "unit/test_evaluating"),
    Mutation("arguments are not checked", "saelab/arguments.py",
             "for name in checks.keys() & given.arguments.keys():", "for name in checks.keys() & set():",
             "unit/test_fuzz"),
    Mutation("the least integer is refused", "saelab/arguments.py",
             "return lambda name, value: integer(name, value, low, high)",
             "return lambda name, value: integer(name, value, low + 1, high)", "unit/test_fuzz"),
]  # fmt: skip


def main() -> None:
    parser = argparse.ArgumentParser(description="Whether the tests notice broken code")
    parser.add_argument("--only", default="", help="mutations with this in their name or file")
    parser.add_argument("--all", action="store_true", help="the whole suite for each")
    options = parser.parse_args()
    chosen = [m for m in MUTATIONS if options.only in f"{m.name} {m.file}"]
    with tempfile.TemporaryDirectory() as folder:
        copy = Path(folder) / "saelab"
        _copy(copy)
        missed = []
        width = max(len(m.name) for m in chosen)
        for mutation in chosen:
            said = _judge(copy, mutation, options.all)
            print(f"{mutation.name:{width}}  {mutation.file:32}  {said}", flush=True)
            missed += [mutation] * (not said.startswith("tests/"))
    print(f"{len(chosen) - len(missed)} of {len(chosen)} mutations are noticed")
    sys.exit(bool(missed))


def _copy(copy: Path) -> None:
    copy.mkdir()
    ignored = shutil.ignore_patterns("__pycache__", "node_modules")
    for name in PARTS:
        source = ROOT / name
        if source.is_dir():
            shutil.copytree(source, copy / name, ignore=ignored)
        elif source.exists():
            shutil.copy(source, copy)
    shared = ROOT.parent / "shared"
    if shared.is_dir():
        (copy.parent / "shared").symlink_to(shared)


def _judge(copy: Path, mutation: Mutation, everything: bool) -> str:
    """The first test that fails, or why none does."""
    path = copy / mutation.file
    text = path.read_text()
    if text.count(mutation.old) != 1:
        return f"IS NO LONGER POSSIBLE: {text.count(mutation.old)} places have its text"
    path.write_text(text.replace(mutation.old, mutation.new))
    environment = os.environ | {"PYTHONPATH": str(copy), "HF_HUB_OFFLINE": "1", "OMP_NUM_THREADS": "1"}
    tests = ["tests"] if everything else [f"tests/{name}.py" for name in mutation.tests.split()]
    command = [sys.executable, "-B", "-m", "pytest", "-x", "-q", "-p", "no:cacheprovider", *tests]
    try:
        done = subprocess.run(command, cwd=copy, env=environment, capture_output=True, text=True)
    finally:
        path.write_text(text)
    failed = re.search(r"^(?:FAILED|ERROR) (tests/\S+)", done.stdout, re.M)
    if done.returncode == 1 and failed:
        return failed[1]
    return (
        "IS MISSED" if done.returncode == 0 else f"ENDS PYTEST WITH {done.returncode}: {done.stdout[-500:]}"
    )


if __name__ == "__main__":
    main()

"""Write compat/: what the tools of other libraries make of SAEs of ours that `saelab.compat` made theirs.

Run it once where each tool is installed, in environments of their own:
`PYTHONPATH=. python tests/golden/regenerate_compat.py saelens` (sae-lens), `... dictionary_learning`
(dictionary-learning), `... saebench` (sae-bench) and `... dashboard FOLDER` (sae-dashboard; FOLDER for a
tokenizer). Written with sae-lens 6.54.12, dictionary-learning 0.1.0, sae-bench 0.6.0, sae-dashboard 0.8.0.
"""

from __future__ import annotations

import json
import sys
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import regenerate_splices as splices
import safetensors.torch
import torch
from torch import Tensor

from saelab import compat
from saelab.sae import SAE, recipe

FOLDER = Path(__file__).with_name("compat")
LOGITS, FIGURES = FOLDER / "logits.safetensors", FOLDER / "figures.json"
EARLY, READ, WRITTEN = "blocks.0.hook_resid_post", "blocks.1.mlp.hook_in", "blocks.1.hook_mlp_out"
CASES: dict[str, dict[str, Any]] = {
    "relu": {}, "gated": {}, "jumprelu": {}, "topk": {"k": 5}, "batchtopk": {"k": 5}, "matryoshka": {"k": 5},
    "abs_topk": {"k": 5, "normalise": "sphere"}, "feature_choice": {"k": 5},
    "transcoder": {"sparsity": "l1", "hook": READ, "hook_out": WRITTEN, "d_out": splices.WIDTH},
}  # fmt: skip
"""What HookedSAETransformer runs: recipe -> options."""
DICTIONARIES = ("relu", "gated", "jumprelu", "topk", "batchtopk", "matryoshka")
DRAWN = ("relu", "gated", "jumprelu", "batchtopk")
"""What SAEDashboard has a case for, once it is one of SAELens."""


def ours(name: str) -> SAE:
    """An SAE of ours of fixed weights, its scales other than 1."""
    options = {"hook": EARLY, **CASES[name]}
    d_out = options.pop("d_out", None)
    sae = SAE.create(recipe(name, d_in=splices.WIDTH, d_sae=splices.LATENTS, d_out=d_out, **options))
    with torch.no_grad():
        splices.fill(sae)
        for key, buffer in sae.named_buffers():
            if key.endswith("threshold"):
                buffer.fill_(0.7)
        if sae.config.options["normalise"] == "scalar":
            sae.input_scale.fill_(1.7)
    return sae.eval()


def saelens() -> dict[str, Tensor]:
    """Logits of their HookedSAETransformer with each SAE spliced in."""
    model, tokens, found = splices.hooked("gpt2"), splices.ids(), {}
    for name in CASES:
        with torch.no_grad():
            found[name] = model.run_with_saes(tokens, saes=[compat.to_saelens(ours(name))])
    return found


def activations() -> Tensor:
    """[samples positions width] that the SAEs at EARLY read."""
    model, kept = splices.model("gpt2"), []
    handle = model.transformer.h[0].register_forward_hook(
        lambda module, args, out: kept.append(out if isinstance(out, Tensor) else out[0])
    )
    with torch.no_grad(), handle:
        model(splices.ids())
    return kept[0]


def dictionary_learning() -> dict[str, dict[str, float]]:
    """Their `evaluate` of rows."""
    from dictionary_learning.evaluation import evaluate

    found = {}
    for name in DICTIONARIES:
        batches: Iterator[Tensor] = iter([activations().flatten(0, 1)])
        found[name] = evaluate(compat.to_dictionary_learning(ours(name)), batches)
    return found


class Store:
    """What their core evaluation asks of an activation store."""

    store_batch_size_prompts, context_size = splices.ids().shape

    def get_batch_tokens(self, size: int) -> Tensor:
        return splices.ids()

    def reset_input_dataset(self) -> None:
        pass


def saebench() -> dict[str, dict[str, float]]:
    """Their core evaluation."""
    from sae_bench.evals.core.eval_config import CoreEvalConfig
    from sae_bench.evals.core.main import run_evals
    from sae_bench.sae_bench_utils.general_utils import load_and_format_sae

    settings = CoreEvalConfig(
        batch_size_prompts=3, n_eval_reconstruction_batches=1, compute_kl=True, compute_ce_loss=True,
        compute_l2_norms=True, compute_sparsity_metrics=True, compute_variance_metrics=True,
        compute_featurewise_density_statistics=True, compute_featurewise_weight_based_metrics=True,
        exclude_special_tokens_from_reconstruction=False,
    )  # fmt: skip
    found = {}
    for name, options in CASES.items():
        if "hook" in options:
            continue
        loaded = load_and_format_sae(name, compat.to_saelens(ours(name), model_name="tiny"), "cpu")
        assert loaded is not None
        metrics, _ = run_evals(loaded[1], Store(), splices.hooked("gpt2"), settings)
        found[name] = {key: value for group in metrics.values() for key, value in group.items()}
    return found


def dashboard(folder: Path) -> dict[str, list[list[str]]]:
    """Of each latent what their page says of its density and its largest code."""
    from sae_dashboard.components_config import (
        ActsHistogramConfig,
        FeatureTablesConfig,
        LogitsHistogramConfig,
        LogitsTableConfig,
        SequencesConfig,
    )
    from sae_dashboard.layout import Column, SaeVisLayoutConfig
    from sae_dashboard.sae_vis_data import SaeVisConfig
    from sae_dashboard.sae_vis_runner import SaeVisRunner
    from tokenizers import Tokenizer, models
    from transformers import AutoTokenizer, PreTrainedTokenizerFast

    words = Tokenizer(models.WordLevel({f"w{i}": i for i in range(splices.VOCABULARY)}, "w0"))
    fast = PreTrainedTokenizerFast(tokenizer_object=words, bos_token="w0", eos_token="w0", pad_token="w0")
    fast.save_pretrained(folder)
    model = splices.hooked("gpt2")
    model.set_tokenizer(AutoTokenizer.from_pretrained(str(folder)))
    parts = ActsHistogramConfig(), LogitsHistogramConfig(), LogitsTableConfig(3), FeatureTablesConfig()
    texts = SequencesConfig(buffer=None, top_acts_group_size=3, n_quantiles=0)
    config = SaeVisConfig(
        hook_point=EARLY,
        features=range(splices.LATENTS),
        minibatch_size_tokens=3,
        feature_centric_layout=SaeVisLayoutConfig([Column(*parts, texts)]),
    )
    found = {}
    for name in DRAWN:
        data = SaeVisRunner(config).run(compat.to_saelens(ours(name)), model, splices.ids())
        latents = [data.feature_data_dict[j] for j in range(splices.LATENTS)]
        found[name] = [
            [str(each.acts_histogram_data.title), each.sequence_data.seq_group_data[0].title]
            for each in latents
        ]
    return found


def main() -> None:
    """Write one part anew."""
    part, *rest = sys.argv[1:]
    warnings.simplefilter("ignore")
    FOLDER.mkdir(exist_ok=True)
    if part == "saelens":
        safetensors.torch.save_file(saelens(), LOGITS)
        return
    figures = json.loads(FIGURES.read_text()) if FIGURES.exists() else {}
    made = {"dictionary_learning": dictionary_learning, "saebench": saebench}
    figures[part] = dashboard(Path(*rest)) if part == "dashboard" else made[part]()
    FIGURES.write_text(json.dumps(figures, indent=1, sort_keys=True) + "\n")


if __name__ == "__main__":
    main()

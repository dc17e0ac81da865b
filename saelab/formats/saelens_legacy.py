"""SAELens before version 6: what its `cfg.json` says in the terms of version 6 (read at 3.23.4 and 5.10.7).

Those files are flat, without a `metadata` object, and mix what decides the codes with how the SAE was
trained. Older names: hook_point for hook_name, activation_fn_str for activation_fn; normalize_activations may
be a boolean. An activation_fn of topk with its k in activation_fn_kwargs makes a topk SAE of any
architecture; hook_z in the hook's name means that heads are side by side. Defaults: architecture standard,
b_dec subtracted.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from saelab.formats.reading import refuse
from saelab.types import short

_RENAMED = {
    "hook_point": "hook_name",
    "hook_point_head_index": "hook_head_index",
    "activation_fn_str": "activation_fn",
}
# how it was trained and on what: nothing that changes the codes of given activations
TRAINED = set(
    (
        "model_name model_class_name hook_layer hook_point_layer hook_eval hook_point_eval context_size "
        "prepend_bos dataset_path dataset_trust_remote_code streaming is_dataset_tokenized neuronpedia_id "
        "seqpos_slice model_kwargs model_from_pretrained_kwargs exclude_special_tokens "
        "sae_lens_training_version sae_lens_version metadata use_cached_activations cached_activations_path "
        "b_dec_init_method expansion_factor normalize_sae_decoder noise_scale from_pretrained_path "
        "decoder_orthogonal_init decoder_heuristic_init decoder_heuristic_init_norm "
        "init_encoder_as_decoder_transpose n_batches_in_buffer training_tokens finetuning_tokens "
        "finetuning_method store_batch_size_prompts train_batch_size_tokens act_store_device seed "
        "jumprelu_init_threshold jumprelu_bandwidth autocast autocast_lm compile_llm llm_compilation_mode "
        "compile_sae sae_compilation_mode adam_beta1 adam_beta2 mse_loss_normalization l1_coefficient "
        "lp_norm scale_sparsity_penalty_by_decoder_norm l1_warm_up_steps lr lr_end lr_scheduler_name "
        "lr_warm_up_steps lr_decay_steps n_restart_cycles use_ghost_grads feature_sampling_window "
        "dead_feature_window dead_feature_threshold n_eval_batches eval_batch_size_prompts log_to_wandb "
        "log_activations_store_to_wandb log_optimizer_state_to_wandb wandb_project wandb_id run_name "
        "wandb_entity wandb_log_frequency eval_every_n_wandb_logs resume n_checkpoints checkpoint_path "
        "verbose tokens_per_buffer"
    ).split()
)


def modern(config: Mapping[str, Any], path: Path) -> dict[str, Any]:
    """The config as version 6 has it; settings that are known to neither are left for version 6 to refuse.
    Raises FormatError for an activation that saelab does not have."""
    flat = {_RENAMED.get(key, key): value for key, value in config.items()}
    result = {key: value for key, value in flat.items() if key not in TRAINED}
    activation = result.pop("activation_fn", "relu")
    options = result.pop("activation_fn_kwargs", None) or {}
    if activation not in ("relu", "topk") or not isinstance(options, dict) or set(options) - {"k"}:
        refuse(
            f"The activation in {path} must be relu, or topk with nothing but k",
            short({activation: options} if isinstance(activation, str) else activation),
            "saelab has no SAE with others.",
        )
    if activation == "topk":
        if flat.get("architecture", "standard") not in ("standard", "topk"):
            refuse(
                f"An SAE with activation topk in {path} must be of architecture standard or topk",
                short(flat["architecture"]),
                "saelab has no SAE that does both.",
            )
        result |= {"architecture": "topk", "k": options.get("k")}
    elif result.setdefault("architecture", "standard") == "topk" and "k" not in result:
        refuse(f"A topk SAE in {path} must have activation topk", short(activation))
    hook = result.pop("hook_name", None)
    heads = "hook_z" if isinstance(hook, str) and "hook_z" in hook else "none"
    result["reshape_activations"] = flat.get("reshape_activations", heads)
    normalise = flat.get("normalize_activations")
    if normalise is None or isinstance(normalise, bool):
        result["normalize_activations"] = "expected_average_only_in" if normalise else "none"
    result["metadata"] = {"hook_name": hook, "hook_head_index": result.pop("hook_head_index", None)}
    result["metadata"] |= flat["metadata"] if isinstance(flat.get("metadata"), dict) else {}
    return result

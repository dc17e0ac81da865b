"""Settings of configurations: which are known to change no codes, and where a configuration lies.

Every setting that a reader sees is read, or stands in a list of those that are harmless, or refuses:
libraries and people use one set of tensors for SAEs whose codes differ.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import TYPE_CHECKING, Any

from saelab.formats.reading import INDEX, refuse
from saelab.types import short

if TYPE_CHECKING:
    from saelab.formats.source import Found, Source

# how an SAE was trained, on what and where it was kept: nothing that changes the codes of given activations
HARMLESS = frozenset(
    (
        "seed name run_name run_id exp_name experiment_name description notes version date author license "
        "step steps epoch epochs num_epochs n_epochs training_steps train_steps total_steps n_steps "
        "global_step num_steps loss best_loss final_loss train_loss val_loss eval_loss fvu l0 mse "
        "lr learning_rate lr_end lr_schedule lr_scheduler lr_scheduler_name lr_warm_up_steps lr_warmup_steps "
        "lr_decay_steps warmup_steps warmup decay_start n_restart_cycles optimizer adam_beta1 adam_beta2 "
        "beta1 beta2 weight_decay grad_clip max_grad_norm gradient_clip_norm batch_size train_batch_size "
        "train_batch_size_tokens store_batch_size store_batch_size_prompts model_batch_size micro_batch_size "
        "buffer_size buffer_mult buffer_batches n_batches_in_buffer num_batches_in_buffer num_workers "
        "l1_coeff l1_coefficient l1_lambda l1_penalty sparsity_coeff sparsity_penalty sparsity_weight "
        "lp_norm "
        "l1_warmup_steps l1_warm_up_steps l0_coefficient aux_coeff auxk_coeff auxk_alpha aux_penalty "
        "aux_k auxk k_aux top_k_aux n_batches_to_dead dead_after dead_steps_threshold dead_feature_window "
        "dead_feature_threshold feature_sampling_window feature_sampling_method use_ghost_grads "
        "resample_batches feature_reinit_scale resample_steps ghost_threshold bandwidth "
        "b_dec_init_method initialization_method decoder_init init_method expansion_factor expansion "
        "dict_mult noise_scale from_pretrained_path device dtype enc_dtype torch_dtype autocast autocast_lm "
        "act_store_device model model_id model_name model_class_name lm_name lm_config base_model hf_model "
        "model_path model_kwargs vit_model_cfg custom_clip_ckpt_path tokenizer dataset dataset_name "
        "dataset_path dataset_train_path dataset_val_path dataset_trust_remote_code is_dataset_tokenized "
        "streaming split image_key label_key image_size image_width image_height class_token cls_token_only "
        "use_patches_only context_size ctx_len seq_len max_length max_seq_len num_tokens n_tokens "
        "total_tokens training_tokens finetuning_tokens finetuning_method total_training_tokens "
        "total_training_images total_training_steps tokens_per_buffer training_examples prepend_bos "
        "exclude_special_tokens use_cached_activations cached_activations_path layer layers layer_idx "
        "layer_index hook_layer hook_point_layer block_layer module_name site position submodule_name "
        "hook_name hook_point "
        "layer_subtype hook act_name num_patch checkpoint checkpoint_path checkpoint_dir checkpoint_freq "
        "n_checkpoints save_dir save_path output_dir out_dir log_to_wandb wandb_project wandb_entity "
        "wandb_name wandb_id wandb_group wandb_run wandb_log_frequency perf_log_freq log_every "
        "eval_every_n_wandb_logs n_eval_batches n_validation_runs verbose resume is_training min_l0 "
        "min_explained_variance num_samples n_samples remove_rare_dir save_every "
        "d_submodule n_ctxs io refresh_batch_size out_batch_size dec_init_norm l0_lambda "
        "hook_point_head_index_out run_path git_commit timestamp created_at"
    ).split()
)

# how settings that decide the codes are called: none may stand in a part that is passed over as a whole
DECIDE = frozenset(
    (
        "activation activation_fn activation_fn_str activation_fn_kwargs activation_function act_fn act "
        "nonlinearity architecture sae_type dict_class k top_k topk K threshold theta jump_relu_threshold "
        "normalize normalise normalize_activations normalization norm_activation input_unit_norm "
        "apply_b_dec_to_input rescale_acts_by_decoder_norm activation_mean activation_scale "
        "norm_scaling_factor transcode skip_connection signed"
    ).split()
)


def known(config: Mapping[str, Any], keys: Iterable[str], found: Found) -> None:
    """Refuse settings that are not known: one that is passed over may change the codes."""
    # what class a nested object is of says nothing but that it is there
    told = {key for key in config if not key.endswith(".__class__")}
    unknown = sorted(told - set(keys) - ignored(found))
    if unknown:
        refuse(
            f"{found.path} must hold only settings whose meaning saelab knows",
            short({key: config[key] for key in unknown} if len(unknown) < 4 else unknown),
            "A setting that is passed over may change the codes: where you know that it does not, pass "
            f"load_sae(..., ignore={unknown!r}).",
        )


def harmless(settings: Any, name: str, found: Found) -> None:
    """Refuse a setting that decides codes in a part of a configuration that says something else."""
    told = sorted(DECIDE & set(settings) - ignored(found)) if isinstance(settings, Mapping) else []
    if told:
        refuse(
            f"{name} in {found.path} must not say what the codes are",
            short({key: settings[key] for key in told}),
            f"Where you know that it does not, pass load_sae(..., ignore={told!r}).",
        )


def only(value: Any, wanted: Iterable[Any], name: str, found: Found) -> None:
    """Refuse a setting that must be one of those that this format stands for, where it is set at all."""
    wanted = tuple(wanted)
    said = value.lower() if isinstance(value, str) else value
    same = any(said is w or (said == w and type(said) is type(w)) for w in wanted)
    if not same and name not in ignored(found):
        refuse(
            f"{name} in {found.path} must be {' or '.join(map(repr, wanted))}",
            short(value),
            "saelab has no such SAE of this format.",
        )


def ignored(found: Found) -> set[str]:
    """Settings that the user knows not to matter."""
    said = found.source.given.get("ignore", ())
    names = [said] if isinstance(said, str) else said
    if not isinstance(names, (list, tuple, set)) or not all(isinstance(name, str) for name in names):
        refuse("ignore must be names of settings", short(said), "Pass ignore=['seed'].")
    return set(names)


def beside(source: Source) -> tuple[str, dict[str, Any]] | None:
    """(name, content) of the JSON file that is shown to be the configuration of the source's tensors: by its
    name, or since no other tensors lie there."""
    weights = source.weights
    if weights is None:
        return None
    stem = weights.removesuffix(".gz").removesuffix(INDEX).rpartition(".")[0]
    names = [f"{stem}{end}" for end in (".json", "_cfg.json", "_config.json", ".cfg.json", ".config.json")]
    names += [f"cfg_{stem}.json", f"config_{stem}.json"]
    if source.alone:
        names += list(GENERAL)
    for name in names:
        config = source.config(name)
        if config is not None:
            return name, config
    return None


GENERAL = ("config.json", "cfg.json", "sae_config.json", "sae_cfg.json", "hyperparams.json")
"""Names of configurations that do not say of which file they are."""


def unclaimed(source: Source) -> list[str]:
    """Configurations in the folder of which nothing shows that they are of these tensors."""
    return [] if source.alone else [name for name in GENERAL if (source.folder / name).is_file()]


def seen(source: Source) -> tuple[dict[str, Any], str | None]:
    """The configuration that can be seen of bare tensors, within their file or beside it, and the name of the
    file beside."""
    file, at = source.tensors(), beside(source)
    within = {} if file is None else dict(file.extra)
    return (within, None) if at is None else ({**within, **at[1]}, at[0])

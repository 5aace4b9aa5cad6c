"""Keys of LLaMA-Factory's YAML files (0.9.5) that have no counterpart in this project.

Those with a default other than false, 0 or nothing are listed with it. A key with its default, or
one that switches something off, changes nothing and is accepted.
"""

from __future__ import annotations

from typing import Any


def _off(names: str) -> dict[str, Any]:
    """Return keys that are off by default."""
    return dict.fromkeys(names.split())


_OTHERS: dict[str, Any] = _off(
    """
    adapter_folder resize_vocab split_special_tokens add_tokens add_special_tokens
    new_special_tokens_config rope_scaling shift_attn mixture_of_depths use_unsloth
    enable_liger_kernel moe_aux_loss_coef upcast_layernorm upcast_lmhead_output
    train_from_scratch use_v1_kernels quantization_device_map image_do_pan_and_scan
    crop_to_patches use_audio_in_video use_kt kt_weight_path kt_expert_checkpoint_path
    kt_use_lora_experts kt_lora_expert_num kt_lora_expert_intermediate_size interleave_probs
    eval_num_beams eval_on_each_dataset tool_format default_system preserve_thinking
    data_shared_file_system lr_scheduler_kwargs label_smoothing_factor fp16_full_eval
    gradient_checkpointing_kwargs torch_compile_backend torch_compile_mode
    use_liger_kernel liger_kernel_config use_cache neftune_noise_alpha torch_empty_cache_steps
    auto_find_batch_size eval_delay prediction_loss_only eval_on_start eval_use_gather_object
    eval_accumulation_steps include_for_metrics batch_eval_metrics save_on_each_node
    enable_jit_checkpoint metric_for_best_model greater_is_better ignore_data_skip
    restore_callback_states_from_checkpoint full_determinism
    accelerator_config parallelism_config dataloader_drop_last label_names ddp_bucket_cap_mb
    ddp_broadcast_buffers
    ddp_static_graph ddp_backend debug sortish_sampler generation_max_length
    generation_num_beams generation_config ray_init_kwargs master_addr master_port fp8
    fp8_enable_fsdp_float8_all_gather enable_torch_profiler profiler_output_dir
    profile_modules freeze_extra_modules additional_target module_dropout oft_rank
    create_new_adapter loraplus_lr_ratio use_rslora pissa_init pissa_convert use_llama_pro
    use_mca use_hyper_parallel hyper_parallel_args use_dft_loss use_asft_loss use_eaft_loss
    include_effective_tokens_per_second
    """
) | {
    "init_special_tokens": "noise_init", "low_cpu_mem_usage": True,
    "quantization_type": "nf4", "double_quantization": True,
    "audio_sampling_rate": 16000, "ignore_pad_token_for_loss": True, "adam_beta1": 0.9,
    "adam_epsilon": 1e-08, "average_tokens_across_devices": True,
    "logging_strategy": "steps", "log_on_each_node": True, "logging_nan_inf_filter": True,
    "log_level": "passive", "log_level_replica": "warning", "eval_do_concat_batches": True,
    "train_sampling_strategy": "random", "length_column_name": "length",
    "skip_memory_metrics": True, "local_rank": -1, "ray_num_workers": 1,
    "fp8_backend": "auto", "profiler_wait_steps": 1, "profiler_warmup_steps": 1,
    "profiler_active_steps": 1, "profiler_repeat": 1, "profiler_record_shapes": True,
    "profiler_profile_memory": True, "profiler_with_stack": True,
    "freeze_trainable_modules": "all", "oft_block_size": 32, "oft_target": "all",
    "loraplus_lr_embedding": 1e-06, "pissa_iter": 16, "asft_alpha": 0.1, "eaft_alpha": 1.0,
    "top_k": 50, "max_length": 1024, "skip_special_tokens": True,
}  # fmt: skip
_SERVICES: dict[str, Any] = _off(
    """
    cache_dir ms_hub_token om_hub_token trackio_space_id trackio_bucket_id
    trackio_static_space_id push_to_hub hub_private_repo hub_model_id hub_always_push
    hub_revision use_swanlab swanlab_workspace swanlab_run_name swanlab_api_key swanlab_logdir
    swanlab_lark_webhook_url swanlab_lark_secret
    """
) | {
    "model_revision": "main", "project": "huggingface", "hub_strategy": "every_save",
    "swanlab_project": "llamafactory", "swanlab_mode": "cloud",
}  # fmt: skip
_OTHER_COMMANDS: dict[str, Any] = _off(
    """
    export_dir export_quantization_bit export_quantization_dataset export_legacy_format
    export_hub_model_id vllm_enforce_eager vllm_config sglang_config
    """
) | {
    "infer_backend": "huggingface", "offload_folder": "offload", "use_kv_cache": True,
    "infer_dtype": "auto", "export_size": 5, "export_device": "cpu",
    "export_quantization_nsamples": 128, "export_quantization_maxlen": 1024,
    "vllm_maxlen": 4096, "vllm_gpu_util": 0.7, "vllm_max_lora_rank": 32,
    "sglang_maxlen": 4096, "sglang_mem_fraction": 0.7, "sglang_tp_size": -1,
    "sglang_lora_backend": "triton",
}  # fmt: skip
_OPTIMIZERS: dict[str, Any] = _off(
    """
    optim_args optim_target_modules use_galore galore_layerwise use_apollo apollo_layerwise
    apollo_scale_front use_badam badam_start_block badam_verbose use_adam_mini use_muon
    """
) | {
    "galore_target": "all", "galore_rank": 16, "galore_update_interval": 200,
    "galore_scale": 2.0, "galore_proj_type": "std", "apollo_target": "all",
    "apollo_rank": 16, "apollo_update_interval": 200, "apollo_scale": 32.0,
    "apollo_proj": "random", "apollo_proj_type": "std", "apollo_scale_type": "channel",
    "badam_mode": "layer", "badam_switch_mode": "ascending", "badam_switch_interval": 50,
    "badam_update_ratio": 0.05, "badam_mask_mode": "adjacent",
}  # fmt: skip
_PREFERENCES: dict[str, Any] = _off(
    """
    pref_ftx pref_bco_weight dpo_label_smoothing ppo_score_norm ppo_whiten_rewards ref_model
    ref_model_adapters ref_model_quantization_bit reward_model reward_model_adapters
    reward_model_quantization_bit ld_alpha
    """
) | {
    "pref_beta": 0.1, "pref_loss": "sigmoid", "kto_chosen_weight": 1.0,
    "kto_rejected_weight": 1.0, "simpo_gamma": 0.5, "ppo_buffer_size": 1, "ppo_epochs": 4,
    "ppo_target": 6.0, "reward_model_type": "lora",
}  # fmt: skip

_REASONS: tuple[tuple[dict[str, Any], str], ...] = (
    (_PREFERENCES, "belongs to a stage other than sft"),
    (_OPTIMIZERS, "is not supported; run.optimizer chooses the optimizer"),
    (_OTHER_COMMANDS, "has no effect on training or prediction; remove it"),
    (_SERVICES, "is not supported: nothing is downloaded or sent to a service; remove it"),
    (_OTHERS, "is not supported; remove it"),
)


def unsupported(key: str, value: Any) -> str | None:
    """Return why a key of LLaMA-Factory has no counterpart.

    Args:
        key: The key.
        value: Its value.

    Returns:
        The reason; "" if the value changes nothing, and None if LLaMA-Factory has no such key.
    """
    for keys, reason in _REASONS:
        if key in keys:
            return "" if not value or value == keys[key] else reason
    return None

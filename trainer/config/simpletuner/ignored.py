"""Options of SimpleTuner that change nothing here, and the reason for each. No torch."""

import textwrap
from collections.abc import Mapping
from typing import Any

from longcat.problem import SHOWN_CHARACTERS, Problem

_OFF: tuple[Any, ...] = (None, False, "", "none", "false", "no", 0, "0", (), [], {})
"""Values that switch an option of SimpleTuner off."""

SWITCHED_OFF = Problem(code="option_without_effect", template="no effect here: switched off")
SPEED = Problem(
    code="ignored_speed", template="no effect here: speed and memory are decided by the device and by `lithograph plan`"
)
CACHES = Problem(code="ignored_caches", template="no effect here: caches go by the content of pictures and captions")
_RECORDS = Problem(
    code="ignored_records", template="no effect here: an option of records and previews, not of the adapter"
)
_LAUNCH = Problem(code="ignored_launch", template="no effect here: torchrun decides about processes and machines")
DELETION = Problem(
    code="ignored_deletion", template="no effect here: files are never deleted; a report lists unusable ones"
)
_HUB = Problem(code="ignored_hub", template="no effect here: adapters go to publish_to, not to a hub")
SAME = Problem(code="ignored_same", template="no effect here: it is always so")
_OTHER_MODEL = Problem(code="ignored_other_model", template="no effect here: an option of other models")
SWITCH_IS_OFF = Problem(code="ignored_part", template="no effect here: its feature is switched off")

_IGNORED: Mapping[str, Problem] = {
    name: reason
    for reason, names in (
        (SPEED, """
         accelerator_cache_clear_interval allow_tf32 aspect_bucket_worker_count attention_mechanism aws_max_pool_connections
         base_model_default_dtype compress_disk_cache dataloader_prefetch dataloader_prefetch_qlen
         delete_model_after_load disable_benchmark disable_tf32 dynamo_backend dynamo_dynamic dynamo_fullgraph dynamo_mode
         dynamo_use_regional_compilation ema_cpu_only ema_device ema_foreach_disable enable_chunked_feed_forward
         enable_model_cpu_offload enable_multiprocessing enable_xformers_memory_efficient_attention feed_forward_chunk_size
         find_unused_parameters fully_unload_text_encoder fuse_optimizer fuse_qkv_projections
         fused_qkv_projections gradient_checkpointing_backend
         gradient_checkpointing_offload_attention gradient_checkpointing_offload_pin_memory_max_buckets
         gradient_checkpointing_offload_prefetch gradient_checkpointing_segment_stride group_offload_text_encoder
         group_offload_to_disk_path group_offload_use_stream group_offload_vae image_processing_batch_size keep_vae_loaded
         max_workers musubi_block_swap_device musubi_blocks_to_swap offload_during_save offload_during_startup
         offload_param_path optimizer_cpu_offload_method optimizer_offload_gradients optimizer_release_gradients
         quantize_via ramtorch ramtorch_controlnet ramtorch_disable_extensions ramtorch_disable_sync_hooks
         ramtorch_target_modules ramtorch_text_encoder ramtorch_text_encoder_percent ramtorch_transformer_percent
         ramtorch_vae read_batch_size sageattention_usage set_grads_to_none text_encoder_batch_size torch_num_threads
         unet_attention_slice vae_dtype vae_enable_patch_conv vae_enable_slicing vae_enable_temporal_roll vae_enable_tiling
         validation_torch_compile write_batch_size"""),
        (CACHES, """
         aspect_bucket_disable_rebuild cache_dir_text cache_dir_vae disable_bucket_pruning metadata_update_interval
         override_dataset_config preserve_data_backend_cache skip_file_discovery text_cache_disable text_cache_ondemand
         text_embed_full_cache vae_cache_disable vae_cache_ondemand vae_cache_scan_behaviour"""),
        (_RECORDS, """
         checkpointing_use_tempdir configs_dir debug_aspect_buckets debug_dataset_loader disk_low_action disk_low_script
         disk_low_threshold eval_dataset_pooling eval_epoch_interval eval_loss_disable eval_timesteps
         evaluation_type
         i_know_what_i_am_doing ignore_missing_files logging_dir merge_environment_config print_filenames
         print_sampler_statistics publishing_config tracker_image_layout trust_remote_code
         validation_disable_unconditional validation_external_background validation_image_format validation_image_quality
         validation_multigpu validation_on_startup validation_preview validation_preview_steps
         validation_seed_source webhook_reporting_interval
         """),
        (_LAUNCH, """
         accelerate_config accelerate_extra_args local_rank machine_rank main_process_ip main_process_port num_machines
         num_processes"""),
        (DELETION, """
         delete_invalid_checkpoints delete_nsfw_images delete_problematic_images delete_unwanted_images"""),
        (SAME, "allow_dataset_oversubscription gradient_precision ignore_final_epochs"),
        (_OTHER_MODEL, """
         audio_channels audio_duration_interval audio_flow_schedule_shift audio_max_duration_seconds
         audio_min_duration_seconds audio_truncation_mode custom_text_encoder_intermediary_layers framerate
         text_encoder_2_precision text_encoder_3_precision text_encoder_4_precision validation_audio_duration
         validation_audio_only validation_guidance_real validation_lyrics validation_ltx2_video_conditioning
         validation_no_cfg_until_timestep validation_num_video_frames"""),
        (_HUB, """
         hub_model_id model_card_note model_card_private model_card_safe_for_work modelspec_comment push_to_hub_background
         """),
    )
    for name in names.split()
}  # fmt: skip
"""Options that change nothing about the adapter, and the reason why each has no effect."""
_SAME: Mapping[str, Any] = {
    "aspect_bucket_rounding": 2, "conditioning_multidataset_sampling": "random", "context_parallel_size": 1,
    "data_backend_sampling": "auto-weighting", "ema_update_interval": 1, "ema_validation": "ema_only",
    "layer_freeze_strategy": "none",
    "lora_format": "diffusers", "loss_type": "l2", "peft_lora_mode": "standard", "prediction_type": "flow_matching",
    "seed_for_each_device": True, "tokenizer_max_length": 512,
    "validation_lycoris_strength": 1.0, "validation_method": "simpletuner-local",
}  # fmt: skip
"""Values of options that are always so here; another value is refused."""
_PARTS: Mapping[str, str] = {
    "assistant_lora_": "assistant_lora_path", "context_parallel_": "context_parallel_size",
    "controlnet_": "controlnet", "crepa_": "crepa_enabled",
    "diff2flow_": "diff2flow_enabled", "distillation_": "distillation_method", "ema_": "use_ema",
    "flow_beta_schedule_": "flow_use_beta_schedule", "fsdp_": "fsdp_enable", "group_offload_": "enable_group_offload",
    "huber_": "loss_type", "internal_guidance_": "internal_guidance_enabled", "irepa_": "irepa_enabled",
    "layersync_": "layersync_enabled", "lr_scale_": "lr_scale", "mixflow_": "mixflow_enabled",
    "nextlat_": "nextlat_enabled", "noise_offset_": "noise_offset", "nsfw_check_": "enable_nsfw_check",
    "refiner_training_": "refiner_training", "scheduled_sampling_": "scheduled_sampling_max_step_offset",
    "sdnq_": "sdnq", "singlora_": "use_singlora", "text_encoder_l": "train_text_encoder",
    "timestep_bias_": "timestep_bias_strategy",
    "twinflow_": "twinflow_enabled", "urepa_": "urepa_enabled", "validation_adapter_": "validation_adapter_path",
    "validation_guidance_skip_": "validation_guidance_skip_layers", "xm_": "xm_enabled",
}  # fmt: skip
"""Beginnings of options that are parts of a feature, and the option that switches it on; sdnq is none, and so always off."""
_OF_OTHER_MODELS = (
    "acestep_", "cosmos3_", "deepfloyd_", "flux_", "hidream_", "ideogram_", "krea2_", "ltx2_", "ltx_", "lyrics_embedder_",
    "minimax_", "pixart_", "sana_", "sd3_", "sdxl_", "wan_",
)  # fmt: skip
"""Beginnings of options that SimpleTuner reads with another model family alone."""


def grouped(ignored: Mapping[str, Problem]) -> tuple[Problem, ...]:
    """Return one warning for each reason, which names all its options; more where they are too many to be shown."""
    reasons = {reason.code: reason for reason in ignored.values()}
    names = {code: ", ".join(name for name, reason in ignored.items() if reason.code == code) for code in reasons}
    return tuple(
        reasons[code].within(field=line.removesuffix(","))
        for code in reasons
        for line in textwrap.wrap(names[code], SHOWN_CHARACTERS)
    )


def is_off(value: object) -> bool:
    """Return whether a value switches an option of SimpleTuner off."""
    return (value.lower() if isinstance(value, str) else value) in _OFF


def reason_to_ignore(key: str, value: object, options: Mapping[str, Any], *, known: bool) -> Problem | None:
    """Return the reason to ignore an option that is none of ours; None if there is none.

    ``options``: all that are given. ``known``: whether SimpleTuner has the option with this model family.
    """
    if key.startswith(_OF_OTHER_MODELS):
        return _OTHER_MODEL
    if not known:
        return None
    if is_off(value):
        return SWITCHED_OFF
    if key in _IGNORED:
        return _IGNORED[key]
    if key in _SAME and _SAME[key] == value:
        return SAME
    for beginning, switch in _PARTS.items():
        given = options.get(switch)
        if key.startswith(beginning) and key != switch and (is_off(given) or given == _SAME.get(switch)):
            return SWITCH_IS_OFF
    return None

"""Options of SimpleTuner that are no options here: ignored with a reason, translated, or refused with a remedy. No torch."""

from collections.abc import Iterable, Mapping
from functools import lru_cache
from pathlib import Path
from typing import Any

from longcat.problem import Problem
from longcat.validation import names_of, unknown_field
from trainer.config.options import TrainConfig

_KEYS_FILE = Path(__file__).parent / "keys.txt"
_OFF: tuple[Any, ...] = (None, False, "", "none", "false", "no", 0, "0", (), [], {})
"""Values that switch an option of SimpleTuner off."""

SWITCHED_OFF = Problem(code="option_without_effect", template="no effect here: switched off")
SPEED = Problem(
    code="ignored_speed", template="no effect here: speed and memory are decided by the device and by `lithograph plan`"
)
CACHES = Problem(code="ignored_caches", template="no effect here: caches go by the content of pictures and captions")
RECORDS = Problem(
    code="ignored_records", template="no effect here: an option of records and previews, not of the adapter"
)
_LAUNCH = Problem(code="ignored_launch", template="no effect here: torchrun decides about processes and machines")
DELETION = Problem(
    code="ignored_deletion", template="no effect here: files are never deleted; a report lists unusable ones"
)
_HUB = Problem(code="ignored_hub", template="no effect here: adapters go to publish_to, not to a hub")
SAME = Problem(code="ignored_same", template="no effect here: it is always so")
_SWITCH_IS_OFF = Problem(code="ignored_part", template="no effect here: its feature is switched off")

_IGNORED: Mapping[str, Problem] = {
    name: reason
    for reason, names in (
        (SPEED, """
         accelerator_cache_clear_interval aspect_bucket_worker_count attention_mechanism aws_max_pool_connections
         base_model_default_dtype compress_disk_cache dataloader_prefetch dataloader_prefetch_qlen
         delete_model_after_load disable_benchmark disable_tf32 dynamo_backend dynamo_dynamic dynamo_fullgraph dynamo_mode
         dynamo_use_regional_compilation ema_cpu_only ema_device ema_foreach_disable enable_multiprocessing
         find_unused_parameters fully_unload_text_encoder fuse_optimizer gradient_checkpointing_backend
         gradient_checkpointing_offload_attention gradient_checkpointing_offload_pin_memory_max_buckets
         gradient_checkpointing_offload_prefetch gradient_checkpointing_segment_stride group_offload_text_encoder
         group_offload_to_disk_path group_offload_use_stream group_offload_vae image_processing_batch_size keep_vae_loaded
         max_workers musubi_block_swap_device musubi_blocks_to_swap offload_during_save offload_during_startup
         offload_param_path optimizer_cpu_offload_method optimizer_offload_gradients optimizer_release_gradients
         quantize_via ramtorch ramtorch_controlnet ramtorch_disable_extensions ramtorch_disable_sync_hooks
         ramtorch_target_modules ramtorch_text_encoder ramtorch_text_encoder_percent ramtorch_transformer_percent
         ramtorch_vae read_batch_size sageattention_usage set_grads_to_none text_encoder_batch_size torch_num_threads
         unet_attention_slice vae_dtype vae_enable_patch_conv vae_enable_slicing vae_enable_temporal_roll vae_enable_tiling
         write_batch_size"""),
        (CACHES, """
         aspect_bucket_disable_rebuild cache_dir_text cache_dir_vae disable_bucket_pruning metadata_update_interval
         override_dataset_config preserve_data_backend_cache skip_file_discovery text_cache_disable text_cache_ondemand
         text_embed_full_cache vae_cache_disable vae_cache_ondemand vae_cache_scan_behaviour"""),
        (RECORDS, """
         checkpointing_use_tempdir configs_dir debug_aspect_buckets debug_dataset_loader disk_low_action disk_low_script
         disk_low_threshold eval_dataset_pooling eval_epoch_interval eval_loss_disable eval_timesteps
         i_know_what_i_am_doing ignore_missing_files logging_dir merge_environment_config print_filenames
         print_sampler_statistics publishing_config tracker_image_layout trust_remote_code
         validation_disable_unconditional validation_external_background validation_image_format validation_image_quality
         validation_multigpu validation_preview validation_preview_steps validation_seed_source webhook_reporting_interval
         """),
        (_LAUNCH, """
         accelerate_config accelerate_extra_args local_rank machine_rank main_process_ip main_process_port num_machines
         num_processes"""),
        (DELETION, """
         delete_invalid_checkpoints delete_nsfw_images delete_problematic_images delete_unwanted_images"""),
        (_HUB, """
         hub_model_id model_card_note model_card_private model_card_safe_for_work modelspec_comment push_to_hub_background
         """),
    )
    for name in names.split()
}  # fmt: skip
"""Options that change nothing about the adapter, and the reason why each has no effect."""
_SAME: Mapping[str, Any] = {
    "aspect_bucket_rounding": 2, "conditioning_multidataset_sampling": "random", "data_backend_sampling": "auto-weighting",
    "ema_update_interval": 1, "evaluation_type": "none", "grad_clip_method": "norm", "layer_freeze_strategy": "none",
    "lora_format": "diffusers", "loss_type": "l2", "peft_lora_mode": "standard", "prediction_type": "flow_matching",
    "seed_for_each_device": True, "tokenizer_max_length": 512,
    "validation_lycoris_strength": 1.0, "validation_method": "simpletuner-local",
}  # fmt: skip
"""Values of options that are always so here; another value is refused."""
_PARTS: Mapping[str, str] = {
    "assistant_lora_": "assistant_lora_path", "controlnet_": "controlnet", "crepa_": "crepa_enabled",
    "diff2flow_": "diff2flow_enabled", "distillation_": "distillation_method", "ema_": "use_ema",
    "flow_beta_schedule_": "flow_use_beta_schedule", "fsdp_": "fsdp_enable", "group_offload_": "enable_group_offload",
    "huber_": "loss_type", "internal_guidance_": "internal_guidance_enabled", "irepa_": "irepa_enabled",
    "layersync_": "layersync_enabled", "lr_scale_": "lr_scale", "mixflow_": "mixflow_enabled",
    "nextlat_": "nextlat_enabled", "noise_offset_": "noise_offset", "nsfw_check_": "enable_nsfw_check",
    "refiner_training_": "refiner_training", "scheduled_sampling_": "scheduled_sampling_max_step_offset",
    "singlora_": "use_singlora", "text_encoder_l": "train_text_encoder", "timestep_bias_": "timestep_bias_strategy",
    "twinflow_": "twinflow_enabled", "urepa_": "urepa_enabled", "validation_adapter_": "validation_adapter_path",
    "validation_guidance_skip_": "validation_guidance_skip_layers", "xm_": "xm_enabled",
}  # fmt: skip
"""Beginnings of options that are parts of a feature, and the option that switches it on."""
_UNSUPPORTED = Problem(
    code="simpletuner_option", template="an option of SimpleTuner that is not supported", remedy_template="leave it out"
)
_INSTEAD: Mapping[str, Problem] = {
    "push_to_hub": Problem(
        code="push_to_hub_unsupported", template="adapters are not published to a hub",
        remedy_template="publish with publish_to",
    ),
    "train_text_encoder": Problem(
        code="train_text_encoder_unsupported", template="the text encoder is not trained", remedy_template="leave it out"
    ),
    "quantize_activations": Problem(
        code="quantize_activations_unsupported", template="training quantizes weights alone",
        remedy_template="leave it out",
    ),
    "fsdp_version": Problem(
        code="fsdp_version_unsupported", template="FSDP has no other options", remedy_template="use fsdp_enable alone"
    ),
    "fsdp_reshard_after_forward": Problem(
        code="fsdp_reshard_unsupported", template="FSDP has no other options", remedy_template="use fsdp_enable alone"
    ),
    "deepspeed_config": Problem(
        code="deepspeed_unsupported", template="DeepSpeed is not supported",
        remedy_template="use fsdp_enable with torchrun, or int8 weights, with which the base fits most devices",
    ),
    "peft_lora_target_modules": Problem(
        code="peft_targets_unsupported", template="an option of SimpleTuner that has another name here",
        remedy_template="use lora_targets",
    ),
    "num_validation_images": Problem(
        code="num_validation_images_unsupported", template="each prompt is generated once at each size",
        remedy_template="give more prompts or sizes",
    ),
    "push_checkpoints_to_hub": Problem(
        code="push_checkpoints_unsupported", template="checkpoints are not published to a hub",
        remedy_template="leave it out; publish_to publishes the adapter",
    ),
    "checkpoint_epoch_interval": Problem(
        code="epoch_interval_unsupported", template="intervals are counted in steps",
        remedy_template="use checkpointing_steps",
    ),
    "validation_epoch_interval": Problem(
        code="validation_epochs_unsupported", template="intervals are counted in steps",
        remedy_template="use validation_steps",
    ),
    "validation_prompt_library": Problem(
        code="prompt_library_unsupported", template="there is no built-in library of prompts",
        remedy_template="give your own file with user_prompt_library",
    ),
    "validation_using_datasets": Problem(
        code="validation_datasets_unsupported", template="validation generates pictures from prompts alone",
        remedy_template="give validation_prompts",
    ),
    "lr_scale": Problem(
        code="lr_scale_unsupported", template="the learning rate is taken as it is",
        remedy_template="give learning_rate multiplied by batch size, accumulation and processes",
    ),
    **{
        name: Problem(
            code="dataset_option_unsupported", template="an option of each dataset here",
            remedy_template="give it in the entry of data_backend_config",
        )
        for name in ("disable_multiline_split", "instance_prompt", "max_upscale_threshold", "maximum_image_size",
                     "minimum_image_size", "only_instance_prompt", "prepend_instance_prompt", "target_downsample_size")
    },
}  # fmt: skip
"""Problems by option, where the remedy is more than to leave it out."""


def split_foreign(options: Mapping[str, Any]) -> tuple[dict[str, Any], tuple[Problem, ...], list[Problem]]:
    """Return the supported options under our names, a warning for each reason to ignore others, and the others' problems."""
    options, problems = _by_one_name(options)
    options = _translated(options)
    known, supported = names_of(TrainConfig), {}
    ignored: dict[str, Problem] = {}
    for key, value in options.items():
        if key == "lycoris_config" and options.get("lora_type", "standard") == "standard":
            ignored[key] = _SWITCH_IS_OFF
        elif key in known:
            supported[key] = value
        elif key not in foreign_keys():
            problems.append(_unknown(key, value))
        elif (reason := _reason_to_ignore(key, value, options)) is not None:
            ignored[key] = reason
        else:
            problems.append(_INSTEAD.get(key, _UNSUPPORTED).within(field=key, value=value))
    return supported, grouped(ignored), problems


def grouped(ignored: Mapping[str, Problem]) -> tuple[Problem, ...]:
    """Return one warning for each reason, which names all its options."""
    reasons = {reason.code: reason for reason in ignored.values()}
    names = {code: [name for name, reason in ignored.items() if reason.code == code] for code in reasons}
    return tuple(reasons[code].within(field=", ".join(names[code])) for code in reasons)


def is_off(value: object) -> bool:
    """Return whether a value switches an option of SimpleTuner off."""
    return (value.lower() if isinstance(value, str) else value) in _OFF


def our_name(name: str) -> str:
    """Return an option's first name for any of its names, and any other name as it is."""
    return _first_names().get(name, name)


@lru_cache(maxsize=1)
def foreign_keys() -> frozenset[str]:
    """Return the options of SimpleTuner that are not options here."""
    return frozenset(_KEYS_FILE.read_text(encoding="utf-8").split()).difference(names_of(TrainConfig))


@lru_cache(maxsize=1)
def _first_names() -> dict[str, str]:
    return {
        other: name
        for name, about in TrainConfig.model_fields.items()
        for other in getattr(about.validation_alias, "choices", ())
    }


def _by_one_name(options: Mapping[str, Any]) -> tuple[dict[str, Any], list[Problem]]:
    """Return options under their first names, and a problem for each that is given twice with different values."""
    found: dict[str, Any] = {}
    problems = []
    for key, value in options.items():
        name = our_name(key)
        if name in found and found[name] != value:
            problems.append(
                Problem(
                    code="option_given_twice", template="given as {name} too, with the value {other}",
                    remedy_template="leave out one of the two", field=key, value=value,
                    details={"name": name if key != name else _other_name(name, options), "other": found[name]},
                )
            )  # fmt: skip
        found[name] = value
    return found, problems


def _other_name(name: str, options: Iterable[str]) -> str:
    return next(other for other in options if other != name and our_name(other) == name)


def _translated(options: Mapping[str, Any]) -> dict[str, Any]:
    """Return options with SimpleTuner's shift in our form: 0 is no shift, and it follows the size on demand."""
    shift = options.get("flow_schedule_shift")
    follows_size = not is_off(options.get("flow_schedule_auto_shift"))
    kept = {key: value for key, value in options.items() if key != "flow_schedule_auto_shift"}
    if is_off(shift) and follows_size:
        return {**kept, "flow_schedule_shift": "auto"}
    if shift is not None and is_off(shift):
        return {**kept, "flow_schedule_shift": 1.0}
    return kept


def _reason_to_ignore(key: str, value: object, options: Mapping[str, Any]) -> Problem | None:
    if is_off(value):
        return SWITCHED_OFF
    if key in _IGNORED:
        return _IGNORED[key]
    if key in _SAME and _SAME[key] == value:
        return SAME
    for beginning, switch in _PARTS.items():
        given = options.get(switch)
        if key.startswith(beginning) and key != switch and (is_off(given) or given == _SAME.get(switch)):
            return _SWITCH_IS_OFF
    return None


def _unknown(key: str, value: object) -> Problem:
    problem = unknown_field(key, value, [*names_of(TrainConfig), *foreign_keys()])
    if problem.details.get("nearest") in names_of(TrainConfig):
        return problem
    return Problem(  # a list of all options would be too long
        code="unknown_option", template="unknown option", remedy_template="see the configuration reference",
        field=key, value=value,
    )  # fmt: skip

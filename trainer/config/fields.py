"""The fields of a training's configuration: names, types, defaults, help. No torch."""

from pathlib import Path
from typing import Annotated, Literal

from pydantic import AliasChoices, BaseModel, BeforeValidator, ConfigDict, Field

from longcat.model.shape import GRID_PX
from trainer.config.dataset_options import DatasetConfig
from trainer.config.distillation import DistillationConfig
from trainer.config.reading.paths import FilePath, PathText
from trainer.config.simpletuner.lycoris import LycorisConfig
from trainer.config.simpletuner.validation_input import ValidationInput, parse_inputs

_Count = Annotated[int, Field(ge=1, le=2**31 - 1)]
_Optional = Annotated[int, Field(ge=0, le=2**31 - 1)]
_Seed = Annotated[int, Field(ge=0, lt=2**63)]
_Share = Annotated[float, Field(ge=0, le=1)]
_Endings = Annotated[tuple[Annotated[str, Field(min_length=1)], ...], Field(min_length=1)]
_Limit = Annotated[float, Field(ge=0)] | None


def _named(*names: str) -> AliasChoices:
    """Return the names of a field that has several; the first is ours."""
    return AliasChoices(*names)


class TrainFields(BaseModel):
    """The fields of ``trainer.config.options.TrainConfig``; each docstring is the help that users read."""

    model_config = ConfigDict(
        extra="forbid",
        frozen=True,
        use_attribute_docstrings=True,
        populate_by_name=True,
        protected_namespaces=(),
        allow_inf_nan=False,
    )

    # The model.
    model_type: Literal["lora"] = "lora"
    """A LoRA adapter: the only kind that can be served."""
    model_family: Literal["longcat_image"] = "longcat_image"
    """LongCat-Image."""
    model_flavour: str = "final"
    """final (best quality), dev (a mid-training checkpoint, made for fine-tuning), edit (learns edits from pairs of
    pictures), edit-turbo (the same in few steps), or embedded (tiny, runs on a CPU)."""
    pretrained_model_name_or_path: PathText | None = None
    """A directory or hub id to use instead of the flavour's own weights."""
    revision: str | None = None
    """Branch, tag or commit on the hub."""
    base_model_precision: str = "no_change"
    """Storage of the base's weights: no_change, int8-quanto, int4-quanto, int8-torchao, fp8-torchao, fp8-quanto, or auto
    (the best that fits the device)."""
    text_encoder_1_precision: str = "no_change"
    """Storage of the text encoder's weights while captions are embedded; the same choices."""
    mixed_precision: Literal["auto", "no", "bf16", "fp16"] = "auto"
    """Compute type; the adapter itself is always float32. auto is no (float32) on a CPU, else bf16
    (fp16 on NVIDIA's GPUs before Ampere). Losses are scaled with fp16."""
    device: str = "auto"
    """The device: auto, cpu, cuda, cuda:N or mps."""

    # The adapter.
    lora_type: Literal["standard", "lycoris"] = "standard"
    """standard is LoRA as PEFT implements it; lycoris is LoKr or LoHa, whose options are in lycoris_config."""
    lycoris_config: LycorisConfig | None = None
    """LyCORIS' own options of LoKr (few parameters, whole matrices) or LoHa: a JSON object, or a file that contains one.
    With it, lora_rank, lora_alpha, lora_dropout, lora_targets and lora_init_type have no effect."""
    lora_rank: _Count = 16
    """Rank of the adapter. A higher rank learns more and takes more memory; use 4 to 8 where memory is short."""
    lora_alpha: Annotated[float, Field(ge=1e-4, le=1e4)] | None = None
    """The update is scaled by alpha / rank. None is the rank: a scale of 1, which every program reads alike."""
    lora_dropout: Annotated[float, Field(ge=0, lt=1)] = 0.1
    """Share of the adapter's inputs that are dropped at random."""
    lora_targets: Literal["attention", "official", "all-linear", "whole-transformer"] | _Endings = "attention"
    """Layers that the adapter changes: attention (as SimpleTuner), official (as LongCat-Image's own trainer: also the
    prompt's attention and the double blocks' feed-forward), all-linear (all attention, feed-forward and projections of
    blocks), whole-transformer (also modulations, embedders and the output layer), or a list of name endings."""
    lora_init_type: Literal["default", "gaussian"] = "default"
    """Initial values of A: Kaiming-uniform or gaussian. B starts at zero, so that training starts from the base."""
    use_dora: bool = False
    """Weight-decomposed LoRA: also learns the length of each row of a weight. Often closer to full training at low ranks;
    a step takes longer."""
    use_rslora: bool = False
    """Scale by alpha / sqrt(rank) instead of alpha / rank: for ranks of 64 and more."""
    init_lora: FilePath | None = None
    """A safetensors file to start from, instead of zero."""

    # Data.
    distillation: DistillationConfig | None = None
    """Distillation, by ``lithograph distill``: prompts instead of pictures, and the base with guidance as the teacher. The
    adapter then needs few steps and no guidance."""
    data_backend_config: tuple[DatasetConfig, ...] = ()
    """Datasets of captioned pictures: a list, or a JSON file that contains one."""
    instance_data_dir: PathText | None = None
    """A single directory, or s3://bucket/prefix, of pictures with captions, instead of data_backend_config."""
    trigger_words: tuple[str, ...] = ()
    """Words that are put before each caption of instance_data_dir in training if it lacks them; the caption files stay as
    they are. The adapter's manifest names them. A list, or words separated by commas."""
    caption_strategy: str = "textfile"
    """Source of the captions of instance_data_dir, as in data_backend_config."""
    resolution: tuple[str | float, ...] = (1024.0,)
    """Resolution of datasets that give none: a number in the unit of resolution_type, or sizes such as
    1024x1024,1344x768."""
    resolution_type: Literal["pixel", "area", "pixel_area"] = "pixel_area"
    """Unit of a number in resolution: pixel is the shorter side in px, area is megapixels, pixel_area is the side in px of a
    square of the same area."""
    aspect_bucket_alignment: _Count = GRID_PX
    """Bucket sides are multiples of it, in px. The real flavours were trained with 64 and accept no less."""
    caption_dropout_probability: _Share = 0.1
    """Share of captions that are replaced by the empty prompt, which guidance needs."""
    masked_loss_probability: _Share = 1.0
    """Share of the batches in which the masks of pictures weigh the loss; in the others whole pictures are learned."""
    cache_dir: FilePath | None = None
    """Directory for latents and embeddings; None is output_dir/cache. Several trainings can share it."""
    vae_batch_size: _Count = 4
    """Pictures encoded at once while latents are cached."""
    max_image_pixels: _Count = 200_000_000
    """Pictures with more pixels are dropped unread: they may be decompression bombs."""
    background_colour: str = "#ffffff"
    """Background for transparent pictures of instance_data_dir, as #rrggbb."""

    # Training.
    output_dir: FilePath = Path("output")
    """Directory for checkpoints, validation pictures and records."""
    train_batch_size: _Count = 1
    """Pictures per forward, on each device."""
    gradient_accumulation_steps: _Count = 1
    """Forwards per optimizer step, whose gradients are added."""
    max_train_steps: _Optional = 0
    """Total steps; with 0, num_train_epochs decides."""
    num_train_epochs: _Optional = 0
    """Passes over the data, if max_train_steps is 0. If both are 0, 1000 steps."""
    learning_rate: Annotated[float, Field(gt=0)] = 1e-4
    """Learning rate. 1e-4 suits adamw at rank 16; prodigy finds its own rate and needs 1."""
    lr_scheduler: Literal[
        "constant", "constant_with_warmup", "linear", "cosine", "cosine_with_restarts", "polynomial"
    ] = "constant_with_warmup"
    """Schedule of the learning rate after the warm-up."""
    lr_warmup_steps: _Optional = 0
    """Steps over which the learning rate rises from zero."""
    lr_num_cycles: _Count = 1
    """Cycles of cosine_with_restarts."""
    lr_power: Annotated[float, Field(gt=0)] = 1.0
    """Power of the polynomial schedule."""
    lr_end: Annotated[float, Field(ge=0)] = 1e-7
    """Final learning rate of the polynomial schedule; linear and cosine end at 0."""
    optimizer: Literal["adamw", "adamw8bit", "adamw-schedulefree", "prodigy"] = "adamw"
    """adamw (also named adamw_bf16 and torch-adamw: the adapter is float32), adamw8bit (a quarter of the memory; on a
    GPU, faster with a C compiler), adamw-schedulefree, or prodigy."""
    adam_beta1: Annotated[float, Field(ge=0, lt=1)] = Field(
        default=0.9, validation_alias=_named("adam_beta1", "optimizer_beta1")
    )
    """Decay of the gradient's running mean."""
    adam_beta2: Annotated[float, Field(ge=0, lt=1)] = Field(
        default=0.999, validation_alias=_named("adam_beta2", "optimizer_beta2")
    )
    """Decay of the squared gradient's running mean."""
    adam_weight_decay: Annotated[float, Field(ge=0)] = 0.01
    """Weight decay: pull of the weights towards zero."""
    adam_epsilon: Annotated[float, Field(gt=0)] = 1e-8
    """Smallest denominator of an update."""
    max_grad_norm: Annotated[float, Field(ge=0)] = 1.0
    """Limit of the gradients; 0 is no limit."""
    grad_clip_method: Literal["norm", "value"] = "norm"
    """norm scales all gradients down to max_grad_norm together; value limits each one to it."""
    gradient_checkpointing: bool | Literal["auto"] = False
    """Recompute activations in the backward pass: half the speed, a fraction of the memory. auto: only if needed."""
    gradient_checkpointing_interval: _Count = 1
    """Checkpoint every n-th block only."""
    flow_schedule_shift: Annotated[float, Field(gt=0)] | Literal["auto"] = "auto"
    """Shift of the sampled noise levels towards noise. auto follows the picture's size, as LongCat-Image was trained and
    samples; 3 is SimpleTuner's, too much at 512 px."""
    use_ema: bool = False
    """Publish an exponential moving average of the adapter instead of its last state."""
    ema_decay: Annotated[float, Field(gt=0, lt=1)] = 0.999
    """Decay of the moving average; lower in the first steps."""
    seed: _Seed = 42
    """Seed of all randomness. The same seed, data and device give the same adapter, on a CPU bit for bit."""
    enable_group_offload: bool = False
    """Keep the base in main memory and copy blocks to the device when they compute: least memory, slow."""
    group_offload_type: Literal["block_level", "leaf_level"] = "block_level"
    """Unit that is copied to the device at once."""
    group_offload_blocks_per_group: _Count = 1
    """Blocks copied at once, with block_level."""
    fsdp_enable: bool = False
    """Split the base over the processes that torchrun started: each keeps a part, and gathers a block when it computes.
    For a base that is not quantized; int8 weights are faster and fit most devices. Validation needs the whole base."""

    # Checkpoints.
    checkpointing_steps: _Count = Field(
        default=500, validation_alias=_named("checkpointing_steps", "checkpoint_step_interval")
    )
    """Steps between checkpoints."""
    checkpoints_total_limit: _Count = 3
    """Number of checkpoints to keep; older ones are removed."""
    resume_from_checkpoint: PathText | None = None
    """Checkpoint to resume from: latest (start anew if there is none), or a checkpoint's directory."""

    # Validation.
    validation_disable: bool = False
    """Generate no validation pictures; the adapter is then published as the latest version without a check."""
    validation_prompt: str = ""
    """Prompt that is generated with the base and with the adapter."""
    validation_prompts: tuple[str, ...] = ()
    """More prompts; give both Chinese and English ones."""
    user_prompt_library: FilePath | None = None
    """A JSON file with more prompts: an object of names and prompts."""
    validation_input: Annotated[tuple[ValidationInput, ...], BeforeValidator(parse_inputs)] = ()
    """Of a model that edits: pictures to edit, a list of objects with path and prompt. Prompts of other options edit the
    first of them. Empty: the first pairs are taken, held-out ones before others, with their own captions."""
    validation_negative_prompt: str = ""
    """Negative prompt of validation pictures."""
    validation_resolution: tuple[str, ...] = ()
    """Sizes such as 1024x1024,1344x768; each prompt is generated at each size. Empty is the model's default size. A model
    that edits takes their areas, at the ratio of the picture that it edits."""
    validation_guidance: Annotated[float, Field(ge=0)] | None = None
    """Guidance scale of validation pictures; 4 to 6 for the real flavours. None is the model's default."""
    validation_num_inference_steps: _Count | None = None
    """Denoising steps of validation pictures: about 30 for a look, 40 to 50 for best quality. None is the model's
    default."""
    validation_seed: _Seed = 42
    """Seed of every validation picture, so that they can be compared."""
    validation_steps: _Optional = Field(
        default=0, validation_alias=_named("validation_steps", "validation_step_interval")
    )
    """Training steps between validations; 0 validates only at the end."""
    validation_min_change: Annotated[float, Field(ge=0)] = 0.005
    """Least change that the adapter has to make to the pictures of its prompts: mean difference of pixels, 0 to 1."""
    validation_max_drift: Annotated[float, Field(gt=0)] = 0.35
    """Most change to the pictures of validation_base_prompts: a larger one means that the base is damaged."""
    validation_base_prompts: tuple[str, ...] = ()
    """Prompts unrelated to the training, to check that the adapter leaves their pictures alone."""

    # The report card: the loss on held-out pictures.
    eval_share: Annotated[float, Field(ge=0, le=0.5)] = 0.0
    """Share of the pictures that is held out: never trained on, but used to measure the loss. Their content decides which.
    0, the default, holds out none; 0.1 suits 50 pictures and more."""
    eval_dataset_id: str | None = None
    """The one dataset of dataset_type eval that is used; None uses all of them."""
    num_eval_images: _Count = 16
    """Most held-out captions, each with its picture, that an evaluation uses."""
    eval_steps_interval: _Optional = 0
    """Training steps between evaluations. 0 evaluates as often as 4.5 percent of the training's work allows: at the start
    and the end at least, and at most 20 times."""
    publish_checkpoint: Literal["last", "best"] = "last"
    """The adapter to publish: of the last step, or of the evaluation with the lowest loss on held-out pictures."""
    early_stopping_patience: _Optional = 0
    """Evaluations without a lower loss on held-out pictures after which the training stops; 0 never stops early."""
    publish_min_improvement: Annotated[float, Field(lt=1)] | None = None
    """Least share by which the adapter has to lower the base's loss on held-out pictures; with less, nothing is
    published."""
    publish_max_overfit: _Limit = None
    """Most share by which the adapter's loss on held-out pictures may exceed that of the best evaluation; with more, nothing
    is published."""
    publish_max_copies: _Optional | None = None
    """Most validation pictures that may be copies of training pictures; with more, nothing is published."""

    # Records.
    report_to: tuple[Literal["tensorboard", "mlflow", "wandb"], ...] = ()
    """Trackers of curves and validation pictures besides run.json and metrics.jsonl: tensorboard (files in output_dir),
    mlflow, wandb, or several as mlflow,tensorboard. Servers and keys come from the environment: MLFLOW_TRACKING_URI,
    WANDB_API_KEY."""
    tracker_project_name: Annotated[
        str, Field(min_length=1, max_length=128, pattern=r"^[^\x00-\x1f\x7f'\"`/\\#?%:]+$")
    ] = "lithograph"
    """MLflow's experiment, Weights & Biases' project."""
    tracker_run_name: str | None = None
    """Name of the run in records, metrics and trackers; None makes one of adapter name and time."""
    metrics_port: Annotated[int, Field(ge=1, le=65535)] | None = None
    """Port of the /metrics endpoint for Prometheus."""
    pushgateway_url: str | None = None
    """Pushgateway for jobs too short for Prometheus to scrape. It keeps a group for each run until the group is deleted
    there; a run that resumes keeps its name, and so its group."""

    # Publishing.
    publish_to: str | None = None
    """Adapter storage to publish to: file:///directory or s3://bucket/prefix; None keeps the adapter in output_dir."""
    publish_endpoint_url: str | None = None
    """Endpoint of an S3 store that is not AWS."""
    adapter_name: str | None = None
    """Name of the adapter in requests, of lower-case letters, digits, '.', '_' and '-'; required to publish."""

    @property
    def cache_folder(self) -> Path:
        """The directory for latents and embeddings."""
        return self.cache_dir or self.output_dir / "cache"

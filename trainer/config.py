"""What a training is started with, under SimpleTuner's names. No torch: the web page builds its form from it.

Each field's docstring is the help that people read. A file is read, and its mistakes are said, in ``trainer.config_file``.
"""

from pathlib import Path
from typing import Annotated, Any, Literal, Self, get_args

from pydantic import (
    AliasChoices,
    BaseModel,
    ConfigDict,
    Field,
    ValidationError,
    ValidationInfo,
    field_validator,
    model_validator,
)

from longcat.adapter import parse_reference
from longcat.errors import AdapterError, PrecisionError
from longcat.flavour import HUB_IDS
from longcat.precision import Precision, parse_precision
from trainer.dataset_config import CACHE_ENTRIES, DatasetConfig, parse_sizes, width_and_height

GRID_PX = 64
"""LongCat-Image was trained on sides that are multiples of it."""

_Count = Annotated[int, Field(ge=1)]
_Optional = Annotated[int, Field(ge=0)]
_Share = Annotated[float, Field(ge=0, le=1)]


def _named(*names: str) -> Any:
    """A field that goes by several names; the first is ours."""
    return AliasChoices(*names)


class TrainConfig(BaseModel):
    """Everything about one training."""

    model_config = ConfigDict(
        extra="forbid", frozen=True, use_attribute_docstrings=True, populate_by_name=True, protected_namespaces=()
    )

    # What is trained.
    model_type: Literal["lora"] = "lora"
    """A LoRA adapter: the only kind that is served."""
    model_family: Literal["longcat_image"] = "longcat_image"
    """LongCat-Image."""
    model_flavour: str = "final"
    """final (best quality), dev (a mid-training checkpoint, made for fine-tuning), or embedded (tiny, runs on a CPU)."""
    pretrained_model_name_or_path: str | None = None
    """A directory or hub id instead of the flavour's own weights."""
    revision: str | None = None
    """The hub's branch, tag or commit."""
    base_model_precision: str = "no_change"
    """How the base's weights are stored: no_change, int8-quanto, int4-quanto, int8-torchao, fp8-torchao, fp8-quanto, or auto
    (the best that fits the device)."""
    text_encoder_1_precision: str = "no_change"
    """How the text encoder's weights are stored while captions are embedded."""
    mixed_precision: Literal["auto", "no", "bf16", "fp16"] = "auto"
    """What is computed in; the adapter itself is float32 always. auto: no on a CPU, else bf16."""
    device: str = "auto"
    """auto, cpu, cuda, cuda:N or mps."""

    # The adapter.
    lora_type: Literal["standard"] = "standard"
    """PEFT's LoRA."""
    lora_rank: _Count = 16
    """Larger learns more and takes more memory; 4 to 8 where memory is short."""
    lora_alpha: Annotated[float, Field(gt=0)] | None = None
    """The update is scaled by alpha / rank; None is the rank: a scale of 1, which no program gets wrong."""
    lora_dropout: _Share = 0.1
    """Share of the adapter's inputs that are left out at random."""
    lora_targets: Literal["attention", "official", "all-linear"] | tuple[str, ...] = "attention"
    """Layers that it changes: attention (SimpleTuner's), official (as LongCat-Image's own trainer: also the prompt's
    attention and the double blocks' feed-forward), all-linear, or a list of name endings."""
    lora_init_type: Literal["default", "gaussian"] = "default"
    """How A starts: Kaiming-uniform or gaussian. B starts at zero, so that training starts from the base."""
    use_dora: bool = False
    """Weight-decomposed LoRA: also learns how long each row of a weight is. Often closer to full training at low ranks;
    a step takes longer."""
    use_rslora: bool = False
    """Scale by alpha / sqrt(rank): for ranks of 64 and more."""
    init_lora: Path | None = None
    """A safetensors file to start from instead of zero."""

    # Data.
    data_backend_config: tuple[DatasetConfig, ...] = ()
    """Sets of captioned pictures: a list, or a JSON file that holds one."""
    instance_data_dir: str | None = None
    """A single directory or s3://bucket/prefix of pictures with text files, instead of data_backend_config."""
    caption_strategy: str = "textfile"
    """Of instance_data_dir."""
    resolution: tuple[str | float, ...] = (1024.0,)
    """Of sets that name none: a number, in what resolution_type says, or sizes as 1024x1024,1344x768."""
    resolution_type: Literal["pixel", "area", "pixel_area"] = "pixel_area"
    """Whether a number is the shorter side in px, megapixels, or the side in px of a square of the same area."""
    aspect_bucket_alignment: _Count = GRID_PX
    """Grid of the bucket sizes, in px. The real flavours were trained on 64 and are refused less."""
    caption_dropout_probability: _Share = 0.1
    """Share of captions replaced by the empty prompt, from which guidance steers away."""
    cache_dir: Path | None = None
    """For latents and embeddings; None is output_dir/cache. Several trainings can share it."""
    vae_batch_size: _Count = 4
    """Pictures encoded at once while caching."""
    max_image_pixels: _Count = 200_000_000
    """Pictures that claim more are dropped unread: they are decompression bombs."""
    background_colour: str = "#ffffff"
    """What transparent pictures of instance_data_dir are laid on."""

    # Training.
    output_dir: Path = Path("output")
    """Checkpoints, pictures, records."""
    train_batch_size: _Count = 1
    """Pictures of a forward, on each device."""
    gradient_accumulation_steps: _Count = 1
    """Forwards whose gradients make one step."""
    max_train_steps: _Optional = 0
    """Steps in all; 0 follows from num_train_epochs."""
    num_train_epochs: _Optional = 0
    """Passes over the data; with max_train_steps 0. Both 0 is 1000 steps."""
    learning_rate: Annotated[float, Field(gt=0)] = 1e-4
    """1e-4 suits adamw at rank 16; prodigy finds its own and wants 1."""
    lr_scheduler: Literal[
        "constant", "constant_with_warmup", "linear", "cosine", "cosine_with_restarts", "polynomial"
    ] = "constant_with_warmup"
    """How the learning rate changes; after the warm-up, down to lr_end where it falls."""
    lr_warmup_steps: _Optional = 0
    """Steps over which it rises from zero."""
    lr_num_cycles: _Count = 1
    """Of cosine_with_restarts."""
    lr_power: Annotated[float, Field(gt=0)] = 1.0
    """Of polynomial."""
    lr_end: Annotated[float, Field(ge=0)] = 1e-7
    """Of polynomial."""
    optimizer: Literal["adamw", "adamw8bit", "adamw-schedulefree", "prodigy"] = "adamw"
    """adamw (adamw_bf16 and torch-adamw mean it too: the adapter is float32), adamw8bit (a quarter of its memory),
    adamw-schedulefree, or prodigy."""
    adam_beta1: Annotated[float, Field(ge=0, lt=1)] = 0.9
    """Memory of the gradient's mean."""
    adam_beta2: Annotated[float, Field(ge=0, lt=1)] = 0.999
    """Memory of its square."""
    adam_weight_decay: Annotated[float, Field(ge=0)] = 0.01
    """Pull towards zero."""
    adam_epsilon: Annotated[float, Field(gt=0)] = 1e-8
    """Least denominator."""
    max_grad_norm: Annotated[float, Field(ge=0)] = 1.0
    """Gradients are scaled down to this norm; 0 leaves them."""
    gradient_checkpointing: bool | Literal["auto"] = False
    """Compute activations again in the backward pass: half the speed, a fraction of the memory. auto: if needed."""
    gradient_checkpointing_interval: _Count = 1
    """Only in every n-th block."""
    flow_schedule_shift: Annotated[float, Field(gt=0)] | Literal["auto"] = "auto"
    """How noise levels lean towards noise: auto follows the picture's size, as LongCat-Image was trained and samples; 3 is
    SimpleTuner's, too much at 512 px."""
    use_ema: bool = False
    """Publish an exponential average of the adapter instead of its last state."""
    ema_decay: Annotated[float, Field(gt=0, lt=1)] = 0.999
    """Of the average; lower in the first steps."""
    seed: int = 42
    """The same seed, data and device give the same adapter, on a CPU bit for bit."""
    enable_group_offload: bool = False
    """Keep the base in main memory and bring blocks to the device when they compute: least memory, slow."""
    group_offload_type: Literal["block_level", "leaf_level"] = "block_level"
    """What visits the device at once."""
    group_offload_blocks_per_group: _Count = 1
    """With block_level."""
    fsdp_enable: bool = False
    """Split the base over the processes that torchrun started: each holds a part, and gathers a block when it computes.
    Slower than int8 weights, which fit most devices; for a base that stays as it is. Validation needs it whole."""

    # Checkpoints.
    checkpointing_steps: _Count = Field(
        default=500, validation_alias=_named("checkpointing_steps", "checkpoint_step_interval")
    )
    """Steps between checkpoints."""
    checkpoints_total_limit: _Count = 3
    """Older ones are removed."""
    resume_from_checkpoint: str | None = None
    """latest (from the start if there is none), or a checkpoint's directory."""

    # Validation.
    validation_disable: bool = False
    """Draw nothing; what is published then becomes the latest unseen."""
    validation_prompt: str | None = None
    """Drawn with the base and with the adapter."""
    validation_prompts: tuple[str, ...] = ()
    """More of them; give both Chinese and English."""
    user_prompt_library: Path | None = None
    """A JSON file of more: names to prompts."""
    validation_negative_prompt: str = ""
    """What to keep away from."""
    validation_resolution: tuple[str, ...] = ()
    """Sizes, as 1024x1024,1344x768; each prompt is drawn at each. None is the model's default."""
    validation_guidance: Annotated[float, Field(ge=0)] | None = None
    """Guidance scale; 4 to 6 for the real flavours. None is the model's default."""
    validation_num_inference_steps: _Count | None = None
    """Denoising steps: about 30 to look, 40 to 50 for best quality. None is the model's default."""
    validation_seed: Annotated[int, Field(ge=0)] = 42
    """Every picture starts from it, so that they can be compared."""
    validation_steps: _Optional = Field(
        default=0, validation_alias=_named("validation_steps", "validation_step_interval")
    )
    """Training steps between validations; 0 is only at the end."""
    validation_min_change: Annotated[float, Field(ge=0)] = 0.005
    """The adapter has to change its own prompts' pictures by this much: mean difference of pixels, 0..1."""
    validation_max_drift: Annotated[float, Field(gt=0)] = 0.35
    """And the pictures of validation_base_prompts by at most this much: more, and the base is broken."""
    validation_base_prompts: tuple[str, ...] = ()
    """Prompts that have nothing to do with the training, to see what it broke."""

    # Records.
    report_to: Literal["tensorboard", "none"] = "none"
    """Whether to write TensorBoard's files, beside run.json and metrics.jsonl."""
    tracker_run_name: str | None = None
    """The run's name in records and metrics; None makes one of adapter name and time."""
    metrics_port: Annotated[int, Field(ge=1, le=65535)] | None = None
    """Port on which Prometheus finds /metrics."""
    pushgateway_url: str | None = None
    """Pushgateway for jobs that Prometheus would miss. It keeps a group for each run until that is deleted there; a run that
    resumes keeps its name, and so its group."""

    # Publishing.
    publish_to: str | None = None
    """Adapter storage: file:///directory or s3://bucket/prefix; None keeps the adapter in output_dir."""
    publish_endpoint_url: str | None = None
    """Of an S3 store that is not AWS."""
    adapter_name: str | None = None
    """What requests call it; needed to publish."""

    @field_validator("base_model_precision", "text_encoder_1_precision")
    @classmethod
    def _is_precision(cls, given: str) -> str:
        try:
            return given if given == "auto" else parse_precision(given).value
        except PrecisionError as error:
            raise ValueError(str(error)) from error

    @field_validator("optimizer", mode="before")
    @classmethod
    def _by_other_names(cls, given: Any) -> Any:
        return _OPTIMIZER_NAMES.get(given, given) if isinstance(given, str) else given

    @field_validator("resolution", mode="before")
    @classmethod
    def _sizes(cls, given: Any) -> Any:
        return parse_sizes(given)

    @field_validator("validation_resolution", mode="before")
    @classmethod
    def _drawn_sizes(cls, given: Any) -> Any:
        if given in (None, ""):
            return ()
        sizes = [size if isinstance(size, str) else f"{size:.0f}x{size:.0f}" for size in parse_sizes(given)]
        for size in sizes:
            width, height = width_and_height(size)
            if width % GRID_PX or height % GRID_PX:
                raise ValueError(f"{size}: give multiples of {GRID_PX}")
        return tuple(sizes)

    @field_validator("data_backend_config", mode="before")
    @classmethod
    def _pictures_only(cls, given: Any) -> Any:
        if not isinstance(given, list | tuple):
            return given
        return tuple(
            entry
            for entry in given
            if not (isinstance(entry, dict) and (entry.get("dataset_type") in CACHE_ENTRIES or entry.get("disabled")))
        )

    @model_validator(mode="after")
    def _belongs_together(self) -> Self:
        names = [dataset.id for dataset in self.data_backend_config]
        if len(set(names)) < len(names):
            raise ValueError(f"data_backend_config: ids {names} have to differ")
        if self.instance_data_dir and self.data_backend_config:
            raise ValueError("instance_data_dir: the same is said in data_backend_config; leave one out")
        if self.aspect_bucket_alignment % 16:
            raise ValueError(
                f"aspect_bucket_alignment: {self.aspect_bucket_alignment} is no multiple of 16 px, a token"
            )
        if self.model_flavour in HUB_IDS and self.aspect_bucket_alignment < GRID_PX:
            raise ValueError(
                f"aspect_bucket_alignment: {self.aspect_bucket_alignment} is less than {GRID_PX}, the grid that "
                f"flavour {self.model_flavour!r} was trained on"
            )
        if self.fsdp_enable and (self.base_model_precision != "no_change" or self.enable_group_offload):
            raise ValueError(
                "fsdp_enable: only whole weights are split; set base_model_precision no_change and leave out "
                "enable_group_offload, or leave out fsdp_enable: every process then holds a quantized base"
            )
        if self.enable_group_offload and self.group_offload_type == "leaf_level" and self.use_dora:
            raise ValueError("use_dora: its magnitudes do not survive group_offload_type leaf_level; use block_level")
        if self.publish_to and not self.adapter_name:
            raise ValueError("adapter_name: say what the published adapter is to be called")
        return self

    @model_validator(mode="after")
    def _names_a_dataset(self) -> Self:
        """What was said of the only one is found to be wrong here, not when it is first looked at."""
        try:
            self.datasets  # noqa: B018
        except ValidationError as error:
            part = error.errors()[0]
            said = part["msg"].removeprefix("Value error, ")
            name = str(part["loc"][0]) if part["loc"] else "instance_data_dir"
            value = part["input"] if part["loc"] else self.instance_data_dir
            raise ValueError(f"{_OF_DATASET.get(name, name)}: {value!r}: {said}") from error
        return self

    @field_validator("*", mode="before")
    @classmethod
    def _is_no_bare_switch(cls, given: Any, info: ValidationInfo) -> Any:
        """``--learning_rate`` without its value is true, which would be taken for 1."""
        taken = cls.model_fields[str(info.field_name)].annotation
        if isinstance(given, bool) and bool not in (taken, *get_args(taken)):
            raise ValueError("is no switch; give it a value")
        return given

    @field_validator("adapter_name")
    @classmethod
    def _is_name(cls, given: str | None) -> str | None:
        try:
            if given is not None and parse_reference(given).version is not None:
                raise ValueError("versions are numbered by storage; give the name alone")
        except AdapterError as error:
            raise ValueError(str(error)) from error
        return given

    @property
    def flavour(self) -> str:
        """What ``longcat.flavour.resolve`` takes."""
        return self.pretrained_model_name_or_path or self.model_flavour

    @property
    def datasets(self) -> tuple[DatasetConfig, ...]:
        """The sets of pictures, however they were given."""
        if self.instance_data_dir is None:
            return self.data_backend_config
        only = {
            "id": "pictures",
            "instance_data_dir": self.instance_data_dir,
            "caption_strategy": self.caption_strategy,
        }
        return (DatasetConfig.model_validate({**only, "alpha_colour": self.background_colour}),)

    @property
    def cache_folder(self) -> Path:
        """For latents and embeddings."""
        return self.cache_dir or self.output_dir / "cache"

    @property
    def alpha(self) -> float:
        """The adapter's alpha."""
        return float(self.lora_rank if self.lora_alpha is None else self.lora_alpha)

    @property
    def precision(self) -> Precision:
        """The base's; ``auto`` has been decided before this is asked."""
        return Precision(self.base_model_precision)


_OF_DATASET = {"alpha_colour": "background_colour"}
"""What a dataset calls otherwise."""
_OPTIMIZER_NAMES = {
    "adamw_bf16": "adamw",
    "torch-adamw": "adamw",
    "ao-adamw8bit": "adamw8bit",
    "adamw_schedulefree": "adamw-schedulefree",
    "optimi-adamw": "adamw",
}
"""SimpleTuner's names of the same methods."""

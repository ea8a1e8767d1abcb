"""The configuration of the service. ``longcat.options`` derives options, environment variables and reference from it."""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Annotated, Literal, Self

from pydantic import Field, field_validator, model_validator

from longcat.adapter.reference import parse_reference
from longcat.errors import ConfigError, LithographError
from longcat.logs import LogFormat
from longcat.model.flavour import Flavour
from longcat.model.precision import parse_precision
from longcat.options import LONGEST_SECONDS, Configuration, Directories, Flag
from longcat.problem import Problem
from longcat.sampling.quality import sizes_of, tolerances_of
from longcat.storage.address import parse_address
from longcat.validation import ProblemValueError, check_http_url
from service.access.settings import AccessConfig
from service.http.edge.settings import HttpConfig
from service.http.jobs.batches.settings import BatchConfig
from service.http.jobs.settings import JobConfig
from service.wire.devices import names_of, parse_devices
from service.wire.editing.reading import PictureLimits
from service.wire.limits import Limits
from service.wire.messages import WireProblem
from service.wire.provenance.settings import ProvenanceConfig
from service.wire.schema import MAX_ADAPTERS, SMALLEST_PX

AUTO = "auto"
DEFAULT_SLOTS, DEFAULT_RANK, DEFAULT_ROWS = 8, 64, 12
"""Adapter slots, their rank, and rows of a forward, on devices with enough memory."""

_Count = Annotated[int, Field(ge=1)]


def _fits(default: int) -> str:
    return f"{default}; on a CUDA device, what fits"


class ModelConfig(Configuration):
    """The model, and how it is loaded."""

    flavour: str = "embedded"
    """Model: final, dev, edit, edit-turbo, embedded, a directory, a hub id, or auto: final where a CUDA GPU has the memory
    and the weights are here or can be downloaded, else embedded; the reason is logged."""
    flavour_reason: Annotated[WireProblem | None, Flag(is_option=False)] = None
    """Reason of auto's choice; None where the flavour was given."""
    revision: str | None = None
    """The hub's branch, tag or commit; by default its main branch."""
    precision: str = "auto"
    """Storage of the transformer's weights: no_change, int8-quanto, int4-quanto, fp8-quanto, int8-torchao, fp8-torchao; auto
    takes what fits a CUDA device, and no_change elsewhere."""
    text_encoder_precision: str = "auto"
    """Storage of the text encoder's weights, of which there are more: the same choices."""
    device: str = "auto"
    """Device that computes: cpu, cuda, cuda:N or mps; auto takes CUDA, else MPS, else the CPU."""
    dtype: Literal["auto", "float32", "bfloat16", "float16"] = "auto"
    """Type that is computed in; auto takes float32 on a CPU, where it is exact and portable, else bfloat16
    (float16 on NVIDIA's GPUs before Ampere)."""
    offload: Literal["auto", "none", "model", "group"] = "auto"
    """Keep weights in main memory until they are needed: less GPU memory, slower. model moves one component at a time, group
    one layer; auto takes what fits a CUDA device, and none elsewhere."""
    quantized_dir: Annotated[str, Flag(metavar="DIRECTORY")] = "auto"
    """Directory that keeps quantized weights, which later starts read instead of quantizing again: auto is the model's own,
    none keeps none."""
    prompt_cache_dir: Annotated[Path | None, Flag(metavar="DIRECTORY")] = None
    """Directory that keeps the embeddings of prompts: a prompt that a server with this directory has encoded needs no text
    encoder. Several servers and machines may share it. Its files have names of digests and hold no text."""
    prompt_cache_mib: Annotated[int, Field(ge=64)] = 1024
    """Size of that directory, beyond which the embeddings that were used least recently are removed."""
    compile: bool = False
    """Run the blocks through torch.compile: minutes more of warm-up, faster steps."""

    @field_validator("precision", "text_encoder_precision")
    @classmethod
    def _check_precision(cls, given: str) -> str:
        """Reject an unsupported precision before anything is downloaded."""
        with _as_value_error():
            if given != AUTO:
                parse_precision(given)
        return given


class AdapterConfig(Configuration):
    """Storage of adapters, and how many are kept in which memory."""

    uri: Annotated[str, Flag(name="adapters", metavar="URI")]
    """Storage of LoRA adapters: file:///directory or s3://bucket/prefix. Without it, only those that come with the model."""
    endpoint_url: Annotated[str | None, Flag(name="adapters-endpoint-url", metavar="URL")] = None
    """Endpoint of an S3 store other than AWS."""
    slots: Annotated[int | None, Field(ge=MAX_ADAPTERS), Flag(name="adapter-slots", default=_fits(DEFAULT_SLOTS))] = (
        None
    )
    """Adapters that the rows of one forward can use; each slot takes device memory for all layers at full rank."""
    rank: Annotated[int | None, Field(ge=1), Flag(name="adapter-rank", default=_fits(DEFAULT_RANK))] = None
    """Largest rank that is served; every slot has room for it."""
    poll_seconds: Annotated[float, Field(ge=0.1, le=LONGEST_SECONDS), Flag(name="adapter-poll-seconds")] = 2.0
    """Interval between listings of the storage, and so the longest delay before a new version is found."""
    cache_mib: Annotated[_Count, Flag(name="adapter-cache-mib")] = 2048
    """Main memory for verified adapters; from there, a slot is loaded in milliseconds."""
    disk_mib: Annotated[_Count, Flag(name="adapter-disk-mib")] = 10240
    """Disk for downloaded adapters; from there, memory is filled without the network."""
    required: Annotated[tuple[str, ...], Flag(name="require-adapter", metavar="NAME")] = ()
    """Adapter without which the service is not ready. Repeatable."""
    prefetch: Annotated[bool, Flag(name="adapter-prefetch")] = False
    """Download the weights of all adapters, at start and as they are published; by default, those of an adapter that was
    requested, required or pinned."""
    import_from: Annotated[Directories, Flag(metavar="DIRECTORY")] = ()
    """Directory whose LoRA files /v1/load_lora_adapter may publish; files elsewhere are never opened. Repeatable."""
    folder: Annotated[Path, Flag(name="adapter-folder", is_option=False)]
    """Directory for downloads."""
    label: Annotated[str | None, Flag(is_option=False)] = None
    """Name of the storage in errors and lists, where its URI would be a path of the installation."""

    @field_validator("uri")
    @classmethod
    def _check_uri(cls, given: str) -> str:
        with _as_value_error():
            parse_address(given)
        return given

    @field_validator("required")
    @classmethod
    def _check_references(cls, given: tuple[str, ...]) -> tuple[str, ...]:
        with _as_value_error():
            for name in given:
                parse_reference(name)
        return given


class ServiceConfig(Configuration):
    """The configuration of ``lithograph serve``."""

    host: Literal["127.0.0.1", "0.0.0.0", "::"] = "127.0.0.1"  # noqa: S104
    """Address to listen on; loopback by default, because generating needs no key by default."""
    port: Annotated[int, Field(ge=1024, le=65535)] = 8000
    """Port to listen on; LitServe takes no privileged ones."""
    http: HttpConfig = HttpConfig()
    """Addresses of the service, and limits of connections."""
    model: ModelConfig
    """The model, and how it is loaded."""
    devices: Annotated[tuple[str, ...], Flag(metavar="DEVICE,...")] = ()
    """Devices of one kind that compute, each with an engine process of its own, instead of --device: 0,1 for two GPUs,
    cpu,cpu for two engines that divide the cores. A request goes to the one with the least work."""
    adapters: AdapterConfig | None = None
    """Storage of adapters; None serves those that come with the model, if any."""
    access: AccessConfig = AccessConfig()
    """Keys that requests must carry."""
    max_pixels: Annotated[int | None, Field(ge=SMALLEST_PX**2), Flag(default="what the model was made for")] = None
    """Largest width times height of a request."""
    max_steps: _Count = 100
    """Most denoising steps of a request; with max_images, they bound how long one request can take."""
    max_images: _Count = 8
    """Most images of a request."""
    max_rows: Annotated[int | None, Field(ge=2), Flag(default=_fits(DEFAULT_ROWS))] = None
    """Most rows in one forward at the default size; with guidance, an image has two."""
    max_queue: _Count = 64
    """Most requests queued or running; beyond it, 429 with the time after which to retry."""
    max_body_bytes: Annotated[int, Field(ge=1024)] = 64 * 1024
    """Largest request body; a prompt of 512 tokens is a few KiB."""
    timeout_seconds: Annotated[float, Field(ge=0.1, le=LONGEST_SECONDS)] = 600.0
    """Time from a request's arrival to its reply, beyond which it is answered 504; a request may ask for less."""
    stall_seconds: Annotated[float, Field(ge=2, le=LONGEST_SECONDS)] = 10.0
    """Time without a denoising step, and without an idle moment, after which the engine counts as hung: readiness fails, and
    new requests get 503. Where steps are long, it is three times the longest recent one."""
    linger_seconds: Annotated[float, Field(ge=0, le=LONGEST_SECONDS)] = 0.0
    """Time after SIGTERM in which requests are still accepted, though readiness fails: until load balancers and clients with
    open connections have moved on."""
    grace_seconds: Annotated[float, Field(ge=0, le=LONGEST_SECONDS)] = 60.0
    """Time after that in which running requests may finish."""
    pictures: PictureLimits = PictureLimits()
    """The pictures that requests give."""
    provenance: ProvenanceConfig = ProvenanceConfig()
    """The metadata of picture files."""
    jobs: JobConfig = JobConfig()
    """Asynchronous jobs."""
    batches: BatchConfig = BatchConfig()
    """Batches of requests, which need storage for jobs."""
    otlp_endpoint: Annotated[str | None, Flag(metavar="URL", envvar="OTEL_EXPORTER_OTLP_ENDPOINT")] = None
    """Collector that traces are sent to by OTLP over HTTP, as in http://collector:4318; without it, none are made. The other
    OTEL_* variables apply."""
    log_format: LogFormat = "auto"
    """Form of log lines: json, text, or auto, which is text on a terminal and JSON elsewhere."""
    log_prompts: bool = False
    """Log prompts, and all values of refused requests. Without it, neither logs nor traces have text from a request's body,
    except names of adapters."""

    @field_validator("otlp_endpoint")
    @classmethod
    def _check_endpoint(cls, given: str | None) -> str | None:
        return check_http_url(given, example="http://collector:4318")

    @field_validator("devices")
    @classmethod
    def _check_devices(cls, given: tuple[str, ...]) -> tuple[str, ...]:
        return parse_devices(given)

    @model_validator(mode="after")
    def _check_one_choice(self) -> Self:
        if self.devices and self.model.device != AUTO:
            raise ProblemValueError(
                Problem(
                    code="device_and_devices",
                    template="--device and --devices are both given",
                    remedy_template="give one of the two",
                )
            )
        return self

    @property
    def engines(self) -> tuple[ModelConfig, ...]:
        """Return the model's configuration for each engine process."""
        return tuple(self.model.model_copy(update={"device": device}) for device in self.devices) or (self.model,)

    @property
    def device_names(self) -> tuple[str, ...]:
        """Return a name for each engine's device."""
        return names_of(self.devices) or (self.model.device,)

    def limits(self, flavour: Flavour) -> Limits:
        """Return the limits of one request to this model. Raises ``ConfigError`` if they exclude its default size."""
        settings = flavour.settings
        max_pixels = settings.max_pixels if self.max_pixels is None else self.max_pixels
        if settings.default_size_px**2 > max_pixels:
            raise ConfigError(
                "max_pixels_below_default",
                "less than the model's default size",
                remedy="give at least {pixels}",
                field="--max-pixels",
                value=max_pixels,
                pixels=settings.default_size_px**2,
            )
        return Limits(
            settings=settings,
            tolerances=tolerances_of(flavour.folder),
            sizes=sizes_of(flavour.folder),
            max_pixels=max_pixels,
            max_steps=self.max_steps,
            max_images=self.max_images,
            has_adapters=self.adapters is not None,
            webhook_hosts=self.jobs.webhook_hosts,
            max_timeout_seconds=self.timeout_seconds,
            pictures=self.pictures,
            keeps_manifests=self.provenance.signs,
        )


@contextmanager
def _as_value_error() -> Iterator[None]:
    """Raise a problem of ours as a ``ValueError`` for pydantic, which adds the field and the value."""
    try:
        yield
    except LithographError as error:
        raise ProblemValueError(replace(error.problems[0], field="", value=None)) from error

"""What the service is started with."""

import base64
import binascii
from dataclasses import dataclass, field
from pathlib import Path

from longcat.adapter import parse_reference
from longcat.errors import UserError
from longcat.flavour import ModelSettings
from longcat.precision import Offload, parse_precision
from service.limits import Limits
from service.schema import MAX_ADAPTERS

_LEAST_SECRET_BYTES = 24
"""What Standard Webhooks asks for."""


@dataclass(frozen=True, kw_only=True)
class ModelConfig:
    """Which model, and how it is loaded."""

    flavour: str = "embedded"
    """final, dev, embedded, a directory, or a hub id."""
    revision: str | None = None
    """The hub's branch, tag or commit; None is its main branch."""
    precision: str = "no_change"
    """How the transformer's weights are stored: most of the memory."""
    text_encoder_precision: str = "no_change"
    """How the text encoder's weights are stored: the rest of it."""
    device: str = "auto"
    """Where it computes: auto is CUDA, else MPS, else the CPU."""
    dtype: str = "auto"
    """What it computes in: auto is float32 on a CPU, where it is exact and portable, else bfloat16."""
    offload: str = "none"
    """Where weights wait while they are not computing."""
    compile: bool = False
    """Whether the blocks run through torch.compile: minutes to warm up, faster steps after."""

    def __post_init__(self) -> None:
        """Refuse what no machine can do, before anything is downloaded. Raises ``PrecisionError``."""
        parse_precision(self.precision)
        parse_precision(self.text_encoder_precision)
        Offload(self.offload)


@dataclass(frozen=True, kw_only=True)
class AdapterConfig:
    """Where adapters come from, and how many are kept how near."""

    uri: str
    """file:///directory or s3://bucket/prefix."""
    folder: Path
    """For downloads."""
    endpoint_url: str | None = None
    """Of an S3 store that is not AWS."""
    slots: int = 8
    """Adapters that pictures of one forward can use: each takes memory on the device, all layers at full rank."""
    rank: int = 64
    """Largest rank that is served: a slot has room for it."""
    required: tuple[str, ...] = ()
    """Names without which the service is not ready."""
    poll_seconds: float = 2.0
    """Between looks at storage: how old news can be."""
    cache_mib: int = 2048
    """Verified adapters in main memory, from where a slot is loaded in milliseconds."""
    disk_mib: int = 10240
    """Downloaded files, from where memory is filled without the network."""
    import_from: tuple[Path, ...] = ()
    """Directories of this machine whose LoRA files ``/v1/load_lora_adapter`` may publish; no others are opened."""

    def __post_init__(self) -> None:
        """Raise ``UserError`` naming the first field that cannot be."""
        smallest = {"slots": MAX_ADAPTERS, "rank": 1, "poll_seconds": 0.1, "cache_mib": 1, "disk_mib": 1}
        for name, least in smallest.items():
            if getattr(self, name) < least:
                raise UserError(f"adapter {name} {getattr(self, name)} is too small: give at least {least}")
        for name in self.required:
            parse_reference(name)
        for folder in self.import_from:
            if not folder.is_dir():
                raise UserError(f"import_from {folder} is no directory; make it first, or name another")

    @property
    def most_pinned(self) -> int:
        """Slots that may be pinned: one request must always find as many as it may ask for."""
        return self.slots - MAX_ADAPTERS


@dataclass(frozen=True, kw_only=True)
class JobConfig:
    """Requests with ``"async": true``: how long they are remembered, and who is told. They are kept in the HTTP process."""

    most: int = 1000
    """Jobs remembered; beyond it, those that have been over the longest are forgotten. Those under way are in max_queue."""
    mib: int = 256
    """Memory for pictures that wait to be fetched; beyond it, likewise. The newest is kept whatever its size."""
    ttl_seconds: float = 3600.0
    """From a job's end until it is forgotten."""
    webhook_secret: str | None = field(default=None, repr=False)
    """What webhooks are signed with: base64, with or without whsec_ before it. Without one, none are sent."""
    webhook_hosts: tuple[str, ...] = ()
    """Hosts that may be called, as name or name:port: else a request could make this machine call its neighbours."""

    def __post_init__(self) -> None:
        """Raise ``UserError`` naming the first field that cannot be."""
        for name, least in {"most": 1, "mib": 1, "ttl_seconds": 1}.items():
            if getattr(self, name) < least:
                raise UserError(f"jobs' {name} {getattr(self, name)} is too small: give at least {least}")
        if (self.webhook_secret is None) != (not self.webhook_hosts):
            raise UserError(
                "webhooks take both: --webhook-secret to sign them, and --webhook-host for who may be called"
            )
        if self.webhook_secret is not None and len(_secret_bytes(self.webhook_secret)) < _LEAST_SECRET_BYTES:
            raise UserError(
                f"the webhook secret is not {_LEAST_SECRET_BYTES} bytes or more in base64; make one with: "
                "openssl rand -base64 32"
            )


def _secret_bytes(secret: str) -> bytes:
    try:
        return base64.b64decode(secret.removeprefix("whsec_"), validate=True)
    except binascii.Error:
        return b""


@dataclass(frozen=True, kw_only=True)
class ServiceConfig:
    """How the service runs."""

    model: ModelConfig
    adapters: AdapterConfig | None = None
    """None serves the base model alone."""
    jobs: JobConfig = JobConfig()
    """Requests that are answered later."""
    host: str = "127.0.0.1"
    """Loopback unless asked otherwise: there is no authentication."""
    port: int = 8000
    """From 1024 up: LitServe takes no privileged ones."""
    max_pixels: int | None = None
    """Largest width times height of a request; None is what the model was made for."""
    max_steps: int = 100
    """Most denoising steps of a request: with max_images, it bounds how long one request can take."""
    max_images: int = 8
    """Most pictures a request."""
    max_rows: int = 12
    """Most rows in one forward at the default size (a picture has two, with guidance): bounds activation memory."""
    max_queue: int = 64
    """Most requests queued or being drawn; beyond it, 429 with the time to come back."""
    timeout_seconds: float = 600.0
    """From a request's arrival to its reply, and the most that a request may ask for."""
    linger_seconds: float = 0.0
    """After SIGTERM, not ready any more, requests are taken for that long: until load balancers and those who keep
    connections have gone elsewhere."""
    grace_seconds: float = 60.0
    """How long requests that are being drawn may take to finish after that."""
    admin_key: str | None = None
    """What changes adapters asks for, as a bearer token; without one, nothing is removed over HTTP."""
    max_body_bytes: int = 64 * 1024
    """Largest request body: a 512-token prompt is a few KiB."""
    otlp_endpoint: str | None = None
    """Where traces go, over HTTP; without it, there are none."""
    log_format: str = "auto"
    """json, text, or auto: text on a terminal, else JSON."""

    def __post_init__(self) -> None:
        """Raise ``UserError`` naming the first field that cannot be."""
        if not 1024 <= self.port <= 65535:
            raise UserError(f"port {self.port} is not a port from 1024 to 65535")
        if self.otlp_endpoint is not None and not self.otlp_endpoint.startswith(("http://", "https://")):
            raise UserError(
                f"otlp_endpoint {self.otlp_endpoint!r} is no http:// or https:// URL: http://collector:4318, say"
            )
        smallest = {
            "max_pixels": 64 * 64, "max_steps": 1, "max_images": 1, "max_rows": 2, "max_body_bytes": 1024, "max_queue": 1,
            "timeout_seconds": 0.1, "linger_seconds": 0, "grace_seconds": 0,
        }  # fmt: skip
        for name, least in smallest.items():
            value = getattr(self, name)
            if value is not None and value < least:
                raise UserError(f"{name} {value} is too small: give at least {least}")

    def limits(self, settings: ModelSettings) -> Limits:
        """What one request may ask of this model. Raises ``UserError`` if not even its default size may be drawn."""
        max_pixels = settings.max_pixels if self.max_pixels is None else self.max_pixels
        if settings.default_size_px**2 > max_pixels:
            side = settings.default_size_px
            raise UserError(
                f"max_pixels {max_pixels} is less than the model's default size: give at least {side * side}"
            )
        return Limits(
            settings=settings,
            max_pixels=max_pixels,
            max_steps=self.max_steps,
            max_images=self.max_images,
            has_adapters=self.adapters is not None,
            webhook_hosts=self.jobs.webhook_hosts,
        )

"""What the service is started with."""

from dataclasses import dataclass

from longcat.errors import UserError
from longcat.flavour import ModelSettings
from longcat.precision import Offload, parse_precision
from service.schema import Limits


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

    def __post_init__(self) -> None:
        """Refuse what no machine can do, before anything is downloaded. Raises ``PrecisionError``."""
        parse_precision(self.precision)
        parse_precision(self.text_encoder_precision)
        Offload(self.offload)


@dataclass(frozen=True, kw_only=True)
class ServiceConfig:
    """How the service runs."""

    model: ModelConfig
    host: str = "127.0.0.1"
    """Loopback unless asked otherwise: there is no authentication."""
    port: int = 8000
    """From 1024 up: LitServe takes no privileged ones."""
    max_pixels: int | None = None
    """Largest width times height of a request; None is what the model was made for."""
    max_steps: int = 100
    """Most denoising steps of a request: with max_images, it bounds how long one request can take."""
    max_images: int = 8
    """Most pictures a request: one request occupies the device until its last picture."""
    max_rows: int = 8
    """Most rows in one forward (a picture has two, with guidance): bounds activation memory."""
    max_body_bytes: int = 64 * 1024
    """Largest request body: a 512-token prompt is a few KiB."""

    def __post_init__(self) -> None:
        """Raise ``UserError`` naming the first field that cannot be."""
        if not 1024 <= self.port <= 65535:
            raise UserError(f"port {self.port} is not a port from 1024 to 65535")
        smallest = {"max_pixels": 64 * 64, "max_steps": 1, "max_images": 1, "max_rows": 2, "max_body_bytes": 1024}
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
        return Limits(settings=settings, max_pixels=max_pixels, max_steps=self.max_steps, max_images=self.max_images)

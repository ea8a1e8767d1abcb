"""What the service is started with."""

from dataclasses import dataclass

from longcat.errors import UserError


@dataclass(frozen=True, kw_only=True)
class ModelConfig:
    """Which model, and how it is loaded. Names are checked when the model is loaded."""

    flavour: str = "embedded"
    """final, dev, embedded, a directory, or a hub id."""
    revision: str | None = None
    """The hub's branch, tag or commit."""
    precision: str = "no_change"
    """How the transformer's weights are stored: most of the memory."""
    text_encoder_precision: str = "no_change"
    """How the text encoder's weights are stored: the rest of it."""
    device: str = "auto"
    dtype: str = "auto"
    offload: str = "none"


@dataclass(frozen=True, kw_only=True)
class ServiceConfig:
    """How the service runs."""

    model: ModelConfig
    host: str = "127.0.0.1"
    """Loopback unless asked otherwise: there is no authentication yet."""
    port: int = 8000
    max_pixels: int | None = None
    """Largest width times height of a request; None is what the model was made for."""
    max_steps: int = 100
    max_images: int = 8
    """Most pictures a request: one request occupies the device until its last picture."""
    max_rows: int = 8
    """Most rows (pictures, twice with guidance) in one forward: bounds activation memory."""
    max_body_bytes: int = 64 * 1024
    """Largest request body: a 512-token prompt is a few KiB."""

    def __post_init__(self) -> None:
        """Raise ``UserError`` naming the first field that cannot be."""
        if not 1024 <= self.port <= 65535:
            raise UserError(f"port {self.port} is not a port from 1024 to 65535")
        for name in ("max_steps", "max_images", "max_rows", "max_body_bytes"):
            if getattr(self, name) < 1:
                raise UserError(f"{name} {getattr(self, name)} is less than 1: give at least 1")

"""What the studio is started with."""

import ipaddress
from dataclasses import dataclass, field
from pathlib import Path
from urllib.parse import urlsplit

from longcat.errors import UserError
from studio.cluster_settings import ClusterSettings

_SHORTEST_TOKEN = 16
"""Characters: what nobody guesses over a network."""


@dataclass(frozen=True, kw_only=True)
class StudioConfig:
    """How the studio runs."""

    home: Path
    """Everything that it remembers: pictures, datasets, jobs, adapters."""
    host: str = "127.0.0.1"
    """Loopback unless asked otherwise."""
    port: int = 8001
    """As SimpleTuner's web page."""
    token: str | None = field(default=None, repr=False)
    """What browsers log in with, and programs send as a bearer token; without one, whoever reaches the port may do all."""
    service_url: str | None = None
    """A running service; None starts one on the embedded model, for this studio alone."""
    service_admin_key: str | None = field(default=None, repr=False)
    """What that service asks for before it changes adapters."""
    flavour: str = "embedded"
    """What the studio's own service serves."""
    adapters: str | None = None
    """Adapter storage, as the service reads it; None is a directory below home."""
    adapters_endpoint_url: str | None = None
    """Of an S3 store that is not AWS."""
    data_roots: tuple[Path, ...] = ()
    """Folders below which datasets may be picked, beside those that were uploaded; see ``picked_from``."""
    parallel_jobs: int = 1
    """Trainings at once on this machine; the others wait."""
    stop_jobs: bool = False
    """Whether trainings on this machine save and stop with the studio, and go on with the next: in containers, they would
    be killed."""
    cluster: ClusterSettings | None = None
    """Kubernetes as another place for trainings."""
    max_upload_mib: int = 512
    """Largest upload: a dataset's pictures, or an adapter."""
    max_body_kib: int = 256
    """Largest form without files."""

    def __post_init__(self) -> None:
        """Raise ``UserError`` naming the first field that cannot be."""
        if self.token is None and not self.is_local:
            raise UserError(
                f"host {self.host} can be reached from other machines, and nothing would ask them who they are: give "
                "--token (as from `openssl rand -hex 16`), or listen on 127.0.0.1"
            )
        if self.token is not None and len(self.token) < _SHORTEST_TOKEN:
            raise UserError(
                f"the token has {len(self.token)} characters, which can be guessed: give at least {_SHORTEST_TOKEN}, "
                "as from `openssl rand -hex 16`"
            )
        if self.service_url is not None and urlsplit(self.service_url).scheme not in ("http", "https"):
            raise UserError(f"service URL {self.service_url!r} is no URL of a service: give http://HOST:PORT")
        if not 1 <= self.port <= 65535:
            raise UserError(f"port {self.port} is not a port from 1 to 65535")
        for name in ("max_upload_mib", "max_body_kib", "parallel_jobs"):
            if getattr(self, name) < 1:
                raise UserError(f"{name} {getattr(self, name)} is too small: give at least 1")

    @property
    def is_local(self) -> bool:
        """Whether only this machine can reach it."""
        try:
            return ipaddress.ip_address(self.host).is_loopback
        except ValueError:
            return self.host == "localhost"

    @property
    def picked_from(self) -> tuple[Path, ...]:
        """Folders below which datasets may be picked. On one's own machine, one's own files unless told otherwise."""
        return self.data_roots or ((Path.home(),) if self.is_local else ())

    @property
    def adapters_uri(self) -> str:
        """Adapter storage: ``file:///directory`` or ``s3://bucket/prefix``."""
        return self.adapters or (self.home.absolute() / "adapters").as_uri()

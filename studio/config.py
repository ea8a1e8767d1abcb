"""The configuration of the studio. ``longcat.options`` derives options, environment variables and reference from it."""

import ipaddress
from dataclasses import replace
from functools import cached_property
from pathlib import Path
from typing import Annotated, Any, Self
from urllib.parse import urlsplit

from pydantic import Field, field_validator, model_validator

from longcat.errors import LithographError, StorageError
from longcat.options import Configuration, Directories, Flag
from longcat.problem import Problem
from longcat.storage.address import parse_address
from longcat.validation import ProblemValueError, check_http_url
from studio.jobs.cluster_settings import ClusterSettings, read_cluster_settings

_SHORTEST_TOKEN = 16
"""Characters of the shortest token that cannot be guessed over a network."""

_Count = Annotated[int, Field(ge=1)]


class StudioConfig(Configuration):
    """The configuration of ``lithograph server``."""

    host: str = "127.0.0.1"
    """Address to listen on; any other than loopback needs a token."""
    port: Annotated[int, Field(ge=1, le=65535)] = 8001
    """Port to listen on; 8001, as SimpleTuner's web page."""
    token: Annotated[str | None, Field(repr=False), Flag(is_secret=True)] = None
    """Token that browsers log in with and programs send as a bearer token; without a token, everyone who reaches
    the port may do everything."""
    home: Annotated[Path, Field(validate_default=True), Flag(metavar="DIRECTORY")] = Path("~/.local/share/lithograph")
    """Directory of everything that the studio stores: images, datasets, jobs, adapters."""
    service_url: Annotated[str | None, Flag(metavar="URL", default="one of its own")] = None
    """URL of the inference service."""
    service_api_key: Annotated[str | None, Field(repr=False), Flag(is_secret=True)] = None
    """API key of the inference service, with the roles generate and adapters; or its admin key, where it has no API keys."""
    flavour: str = "auto"
    """Model of the studio's own service: embedded, final, dev, a directory, a hub id, or auto: final where a CUDA GPU has
    the memory and the weights are here or can be downloaded, else embedded; the reason is logged and shown. Its other
    options can be given as LITHOGRAPH_SERVE_… in the environment."""
    adapters: Annotated[str | None, Flag(metavar="URI", default="a directory below --home")] = None
    """Storage of adapters, as the service reads it: file:///directory or s3://bucket/prefix."""
    adapters_endpoint_url: Annotated[str | None, Flag(metavar="URL")] = None
    """Endpoint of an S3 store other than AWS."""
    data_roots: Annotated[
        Directories, Flag(name="data-root", metavar="DIRECTORY", default="your home, on loopback")
    ] = ()
    """Directory below which datasets may be chosen, in addition to uploaded ones. Repeatable."""
    destinations: Annotated[
        tuple[str, ...], Flag(name="allow-destination", metavar="URI", default="all of S3 and HTTP, on loopback")
    ] = ()
    """Address that trainings may read from, publish to or report to, beside the studio's own adapters: s3://bucket/prefix,
    file:///directory or http(s)://host:port, and what is below it. Repeatable."""
    caption_endpoint: Annotated[str | None, Flag(metavar="URL", default="no captions by a model")] = None
    """OpenAI-compatible endpoint of a vision-language model that captions pictures, as in http://127.0.0.1:8000/v1."""
    caption_model: str | None = None
    """Name of the model at the caption endpoint."""
    caption_key: Annotated[str | None, Field(repr=False), Flag(is_secret=True)] = None
    """Key of the caption endpoint."""
    c2pa_trust: Annotated[Path | None, Flag(metavar="FILE", default="no issuer is trusted")] = None
    """PEM file of root certificates, read at the start: the issuers of signatures that "Verify a picture" trusts."""
    parallel_jobs: _Count = 1
    """Trainings that run at once on this machine; further ones are queued."""
    stop_jobs: bool = False
    """Stop trainings on this machine, with a checkpoint, when the studio stops, and resume them when it starts: for
    containers, which would kill them. By default they outlive the studio."""
    cluster: Annotated[ClusterSettings | None, Flag(metavar="FILE|JSON")] = None
    """Kubernetes cluster that can run trainings, and the resources they request: a file, or JSON such as {} or
    {"gpus": 1, …}."""
    max_upload_mib: _Count = 512
    """Largest upload: a dataset's images, or an adapter."""
    max_body_kib: _Count = 256
    """Largest form without files."""

    @field_validator("home")
    @classmethod
    def _expand(cls, given: Path) -> Path:
        return given.expanduser().absolute()

    @field_validator("cluster", mode="before")
    @classmethod
    def _read_cluster(cls, given: Any) -> Any:
        return read_cluster_settings(given) if isinstance(given, str) else given

    @field_validator("adapters")
    @classmethod
    def _check_address(cls, given: str | None) -> str | None:
        try:
            if given is not None:
                parse_address(given)
        except StorageError as error:
            raise ProblemValueError(replace(error.problems[0], field="", value=None)) from error
        return given

    @field_validator("destinations")
    @classmethod
    def _check_destinations(cls, given: tuple[str, ...]) -> tuple[str, ...]:
        for address in given:
            if urlsplit(address).scheme in ("http", "https"):
                cls._check_url(address)
            else:
                cls._check_address(address)
        return given

    @field_validator("service_url", "caption_endpoint")
    @classmethod
    def _check_url(cls, given: str | None) -> str | None:
        return check_http_url(given, example="http://127.0.0.1:8000")

    @model_validator(mode="after")
    def _check_captioning(self) -> Self:
        if self.caption_endpoint is not None and not self.caption_model:
            raise ProblemValueError(
                Problem(
                    code="caption_model_missing", template="missing, and --caption-endpoint needs it",
                    remedy_template="give the name of the model there", field="caption_model",
                )
            )  # fmt: skip
        return self

    @model_validator(mode="after")
    def _check_token(self) -> Self:
        """Check the token here: the problem of a single field would show its value."""
        if self.token is None and not self.is_local:
            raise ProblemValueError(
                Problem(
                    code="token_missing",
                    template="can be reached from other machines, and there is no token to log in with",
                    remedy_template="give --token-file, with what `openssl rand -hex 16` prints, or listen on 127.0.0.1",
                    field="host",
                    value=self.host,
                )
            )
        if self.token is not None and len(self.token) < _SHORTEST_TOKEN:
            raise ProblemValueError(
                Problem(
                    code="token_too_short",
                    template="has {length} characters, which can be guessed",
                    remedy_template="give at least {least}, as from `openssl rand -hex 16`",
                    field="token",
                    details={"length": len(self.token), "least": _SHORTEST_TOKEN},
                )
            )
        return self

    @model_validator(mode="after")
    def _check_trust(self) -> Self:
        try:
            _ = self.trusted_roots
        except LithographError as error:
            raise ProblemValueError(error.problems[0]) from error
        return self

    @cached_property
    def trusted_roots(self) -> str | None:
        """Return the root certificates of ``c2pa_trust`` in PEM. Raises ``ConfigError``."""
        if self.c2pa_trust is None:
            return None
        from service.wire.provenance.credential import read_roots  # here: half a second

        return read_roots(self.c2pa_trust, field="c2pa_trust")

    @property
    def is_local(self) -> bool:
        """Return True if only this machine can reach the studio."""
        try:
            return ipaddress.ip_address(self.host).is_loopback
        except ValueError:
            return self.host == "localhost"

    @property
    def picked_from(self) -> tuple[Path, ...]:
        """Return the directories of selectable datasets; on loopback, the user's home by default."""
        return self.data_roots or ((Path.home(),) if self.is_local else ())

    @property
    def reachable(self) -> tuple[str, ...] | None:
        """Return the addresses that trainings may use; None, the default on loopback, for all."""
        return None if self.is_local and not self.destinations else self.destinations

    @property
    def adapters_uri(self) -> str:
        """Return the URI of the adapter storage: ``file:///directory`` or ``s3://bucket/prefix``."""
        return self.adapters or (self.home / "adapters").as_uri()

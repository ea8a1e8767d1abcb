"""Publishing: the adapter to ``output_dir`` first, so that nothing is lost, then to storage, where the service finds it."""

import json
import logging
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Any

from tenacity import before_sleep_log, retry, retry_if_exception_type, stop_after_attempt, wait_exponential

from longcat.adapter.artifact import list_versions, read_manifest
from longcat.adapter.manifest import Draft, Manifest, Sampling, Training
from longcat.adapter.publishing import publish, set_latest
from longcat.adapter.reference import parse_new_name
from longcat.adapter.weights.draft import draft_of
from longcat.adapter.weights.file import save_lora
from longcat.adapter.weights.lora import LoraWeights
from longcat.adapter.weights.usage import usage_header
from longcat.checksum import file_sha256
from longcat.errors import AdapterError, ConfigError, StorageError
from longcat.logs import log_event
from longcat.model.flavour import Flavour
from longcat.problem import Problem
from longcat.storage.atomic import write_atomically
from longcat.storage.disk import writing
from longcat.storage.interface import Storage
from longcat.storage.opening import open_storage
from trainer.config.settings import hash_of
from trainer.record.progress import RunProgress

_RECEIPT = "published.json"
_log = logging.getLogger("lithograph.trainer")


@dataclass(frozen=True, kw_only=True)
class PublishSettings:
    """The options of publishing, under their names in ``TrainConfig``."""

    output_dir: Path
    publish_to: str | None
    publish_endpoint_url: str | None
    adapter_name: str | None

    def open(self) -> Storage:
        """Open the storage to publish to. Raises ``StorageError``."""
        assert self.publish_to is not None
        return open_storage(self.publish_to, endpoint_url=self.publish_endpoint_url)

    def is_done(self) -> bool:
        """Return whether the adapter that is kept in ``output_dir`` has been published there, or need not be."""
        kept = self.output_dir / "adapter.safetensors"
        if not kept.exists():
            return False
        return self.publish_to is None or _receipt(self).get("identity") == _identity(self, file_sha256(kept))

    def check_name(self, flavour: Flavour) -> None:
        """Check the adapter's name against its base model's. Raises ``AdapterError``."""
        if self.adapter_name is not None:
            parse_new_name(self.adapter_name, base=flavour.name, field="adapter_name")

    def check(self) -> None:
        """Check the storage's URI; nothing is read or written. Raises ``ConfigError``."""
        if self.publish_to is None:
            return
        try:
            self.open()
        except StorageError as error:  # nothing was requested of the storage: the URI is wrong, and a retry is no use
            raise ConfigError.of(error.problems).within(field="publish_to", value=self.publish_to) from error


@dataclass(frozen=True, kw_only=True)
class TrainedAdapter:
    """An adapter with everything that its manifest records."""

    weights: LoraWeights
    flavour: Flavour
    precision: str
    """Precision of the base in training."""
    options: Mapping[str, Any]
    """Options of the training that differ from their defaults."""
    steps: int
    losses: tuple[float, ...]
    dataset_hash: str
    trigger_words: tuple[str, ...]
    pictures: Sequence[Path]
    may_be_latest: bool
    """True if validation passed or was disabled."""
    sampling: Sampling | None = None
    """The sampling that a distilled adapter was made for."""


def keep(destination: PublishSettings, adapter: TrainedAdapter) -> Path:
    """Write the adapter into ``output_dir``, for diffusers and ``lithograph adapters import``; return its path."""
    path = destination.output_dir / "adapter.safetensors"
    partial = path.with_name(f".{path.name}.partial")
    try:
        with writing(path):
            header = usage_header(sampling=adapter.sampling, trigger_words=adapter.trigger_words)
            save_lora(adapter.weights, partial, header)
            partial.replace(path)
    finally:
        partial.unlink(missing_ok=True)
    return path


def publish_adapter(destination: PublishSettings, adapter: TrainedAdapter, progress: RunProgress) -> None:
    """Keep the adapter in ``output_dir`` and publish it to the configured storage, if there is one.

    Raises ``StorageError`` when retries did not help; the adapter is still in ``output_dir``.
    """
    progress.phase("publishing")
    path = keep(destination, adapter)
    if destination.publish_to is None:
        log_event(_log, "kept", path=str(path), note="publish_to is not set")
        return
    try:
        manifest = _store(destination, adapter, path)
    except StorageError as error:
        raise StorageError(
            "adapter_not_published",
            "{cause}",
            remedy="start again with resume_from_checkpoint latest, which publishes the adapter that is kept in {path}",
            field="publish_to",
            value=destination.publish_to,
            cause=error.problems[0],
            path=str(path),
        ) from error
    progress.published(manifest.reference)
    if not adapter.may_be_latest:
        progress.warn(
            Problem(
                code="adapter_not_latest",
                template="validation did not pass, so that it is not the latest version: requests for {name} get an earlier "
                "one, if there is one",
                remedy_template="try this one as {reference}; `lithograph adapters rollback {name} --to {version}` makes it "
                "the latest",
                field="adapter",
                value=manifest.reference,
                details={
                    "name": manifest.name, "reference": manifest.reference, "version": manifest.version,
                },
            )
        )  # fmt: skip


def _store(destination: PublishSettings, adapter: TrainedAdapter, weights: Path) -> Manifest:
    """Publish the file that ``keep`` wrote, and move ``latest`` to it if the adapter may be the latest.

    A repeated call finds the version that exists.
    """
    sha256 = file_sha256(weights)
    identity, before = _identity(destination, sha256), _receipt(destination)
    if before.get("identity") == identity:
        manifest = Manifest.model_validate(before["manifest"])
    else:
        manifest = _publish(destination, adapter, weights, sha256)
        content = {"identity": identity, "manifest": manifest.model_dump(mode="json")}
        write_atomically(destination.output_dir / _RECEIPT, json.dumps(content, indent=1).encode())
    if adapter.may_be_latest:
        _set_latest(destination.open(), manifest)
    return manifest


def _identity(destination: PublishSettings, sha256: str) -> dict[str, str | None]:
    return {"storage": destination.publish_to, "name": destination.adapter_name, "sha256": sha256}


def _receipt(destination: PublishSettings) -> dict[str, Any]:
    """Return the record of the last publication; empty if there was none."""
    path = destination.output_dir / _RECEIPT
    return json.loads(path.read_bytes()) if path.exists() else {}


_retry = retry(
    retry=retry_if_exception_type(StorageError),
    stop=stop_after_attempt(4),
    wait=wait_exponential(multiplier=2, max=30),
    before_sleep=before_sleep_log(_log, logging.WARNING),
    reraise=True,
)


@_retry
def _publish(destination: PublishSettings, adapter: TrainedAdapter, weights: Path, sha256: str) -> Manifest:
    name = destination.adapter_name
    assert name is not None
    storage = destination.open()
    newest = max((version for _, version in list_versions(storage, name)), default=None)
    if newest is not None:
        # An earlier attempt may have stored everything and been killed, or its reply lost.
        with suppress(AdapterError):  # a version that cannot be read is not this adapter's
            if (existing := read_manifest(storage, name, newest)).weights.sha256 == sha256:
                return existing
    extras = {f"validation/{path.name}": path for path in adapter.pictures}
    return publish(storage, name, _draft(adapter, tuple(extras)), weights, extras=extras)


@_retry
def _set_latest(storage: Storage, manifest: Manifest) -> None:
    set_latest(storage, manifest.name, manifest.version, only_forward=True)


def _draft(adapter: TrainedAdapter, pictures: tuple[str, ...]) -> Draft:
    options = dict(adapter.options)
    return draft_of(
        adapter.weights,
        adapter.flavour,
        origin="trained",
        trigger_words=adapter.trigger_words,
        sampling=adapter.sampling,
        training=Training(
            precision=adapter.precision,
            config=options,
            config_hash=hash_of(options),
            dataset_hash=adapter.dataset_hash,
            steps=adapter.steps,
            losses=adapter.losses,
            code_version=version("lithograph"),
        ),
        validation_images=pictures,
    )

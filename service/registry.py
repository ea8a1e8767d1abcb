"""Names to verified adapters: which version a name means now, and why another is refused.

A thread looks at storage every few seconds: one listing shows the ETag of every ``latest``, and only names whose ETag is
new are read. A new version is downloaded, checked whole and only then served; what fails is kept with its reason, and the
version before keeps serving. A name or version that is not known yet is looked up when a request asks for it.

All methods may be called from any thread.
"""

import logging
import threading
import time
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass

from longcat.adapter import Manifest, latest_version, parse_reference, read_manifest
from longcat.errors import AdapterError, StorageError, StorageMissingError, UnknownAdapterError, UserError
from longcat.logs import tell
from longcat.storage import Storage
from service import metrics
from service.adapter_cache import AdapterCache
from service.messages import AdapterState, AdapterStatus
from service.slots import Adapter

log = logging.getLogger("lithograph")

_LATEST = "/latest"


@dataclass(kw_only=True)
class _Entry:
    """What is known of a name."""

    name: str
    etag: str | None = None
    """Of the ``latest`` that was last dealt with; None makes the next look deal with it again."""
    desired: int | None = None
    served: Manifest | None = None
    modules: int = 0
    """Layers of the model that the served version changes."""
    reason: str | None = None
    unloaded: bool = False
    pinned: bool = False
    used_at: float | None = None
    requests: int = 0

    @property
    def is_new(self) -> bool:
        """Whether it is found, and no version has been dealt with yet: a look may be at it at this moment."""
        return self.served is None and self.reason is None and not self.unloaded


class Registry:
    """The adapters of one storage, for one base model."""

    def __init__(
        self,
        storage: Storage,
        *,
        cache: AdapterCache,
        most_pinned: int,
        on_pins: Callable[[Sequence[Adapter]], None],
    ) -> None:
        """``on_pins`` is told which adapters are to stay in slots."""
        self.storage = storage
        self._cache = cache
        self._most_pinned = most_pinned
        self._lock = threading.RLock()
        self._entries: dict[str, _Entry] = {}
        self._on_pins = on_pins
        self._told: tuple[str, ...] = ()
        """Digests of the pinned, as last told."""
        self.reachable: bool | None = None
        """Whether the last look at storage worked; None before the first."""

    def wait(self, seconds: float) -> None:
        """Wait, then look at storage."""
        time.sleep(seconds)
        self.look()

    def missing(self, required: Iterable[str]) -> list[str]:
        """Those of the required references that are not served now."""
        with self._lock:
            entries = {reference: self._entries.get(parse_reference(reference).name) for reference in required}
            return [reference for reference, entry in entries.items() if entry is None or entry.served is None]

    def look(self) -> None:
        """Find new, changed and removed names. Never raises: what is loaded keeps serving, whatever happened."""
        try:
            etags = {e.key.removesuffix(_LATEST): e.etag for e in self.storage.list() if e.key.endswith(_LATEST)}
            for name, etag in etags.items():
                with self._lock:
                    entry = self._entries.setdefault(name, _Entry(name=name))
                if entry.etag != etag and not entry.unloaded:
                    self._update(entry, etag)
            with self._lock:
                for name in self._entries.keys() - etags.keys():
                    tell(log, "adapter_gone", adapter=name)
                    del self._entries[name]
                    self._cache.forget(name)
            self._tell_pins()
        except StorageError as error:
            self._note_reachable(False, str(error))
        except Exception:
            log.exception("looking for adapters failed")
            self._note_reachable(False, "see above")
        else:
            self._note_reachable(True, "")

    def resolve(self, reference: str) -> Adapter:
        """The adapter that a reference means now; downloads it if it must.

        Raises ``UnknownAdapterError``, ``AdapterError`` with the reason why it is not served, or ``StorageError``.
        """
        wanted = parse_reference(reference)
        with self._lock:
            entry = self._entries.get(wanted.name)
        if entry is None or entry.is_new:
            entry = self._discover(wanted.name)
        if entry.unloaded:
            raise UnknownAdapterError(f"adapter {wanted.name!r} is unloaded here; load it again first")
        with self._lock:
            entry.used_at = time.monotonic()
            entry.requests += 1
        if wanted.version is not None:
            return self._version(wanted.name, wanted.version)
        if entry.served is None:
            raise AdapterError(f"adapter {wanted.name!r} is not served: {entry.reason}")
        return self._cache.get(entry.served)

    def load(self, reference: str) -> None:
        """Serve a name (again), whatever is known of it; look at its newest version anew."""
        wanted = parse_reference(reference)
        with self._lock:
            entry = self._entries.setdefault(wanted.name, _Entry(name=wanted.name))
            entry.unloaded = False
        try:
            etag = self.storage.read(wanted.name + _LATEST).etag
        except StorageMissingError as error:
            with self._lock:
                self._entries.pop(wanted.name, None)
            raise _unknown(wanted.name, self.storage) from error
        self._update(entry, etag)
        if entry.reason is not None:
            raise AdapterError(f"adapter {wanted.name!r}: {entry.reason}")
        if wanted.version is not None:
            self._version(wanted.name, wanted.version)

    def pin(self, name: str, *, pinned: bool) -> None:
        """Keep a name's newest version in a slot, or no longer."""
        self.resolve(name)
        with self._lock:
            if pinned and sum(e.pinned for e in self._entries.values() if e.name != name) >= self._most_pinned:
                raise UserError(
                    f"adapter {name!r}: {self._most_pinned} are pinned already, and other adapters need slots too"
                )
            self._entries[name].pinned = pinned
        self._tell_pins()

    def unload(self, name: str) -> None:
        """Serve a name no longer, until it is loaded again. Pictures that are being drawn keep it."""
        with self._lock:
            if name not in self._entries:
                raise _unknown(name, self.storage)
            entry = self._entries[name]
            entry.unloaded, entry.pinned, entry.served, entry.etag = True, False, None, None
            self._cache.forget(name)
        self._tell_pins()

    def status(self) -> list[AdapterStatus]:
        """All names, in alphabetical order."""
        with self._lock:
            return [_status(self._entries[name]) for name in sorted(self._entries)]

    def _discover(self, name: str) -> _Entry:
        """A name that no look has found yet."""
        try:
            etag = self.storage.read(name + _LATEST).etag
        except StorageMissingError as error:
            raise _unknown(name, self.storage) from error
        with self._lock:
            entry = self._entries.setdefault(name, _Entry(name=name))
        if entry.etag != etag:
            self._update(entry, etag)
        return entry

    def _update(self, entry: _Entry, etag: str) -> None:
        """Serve what ``latest`` names, if it is good. Raises ``StorageError`` if storage cannot be reached."""
        try:
            desired = latest_version(self.storage, entry.name)
            with self._lock:
                entry.desired = desired
            adapter = self._cache.get(read_manifest(self.storage, entry.name, desired))
        except StorageMissingError as error:  # its manifest is not there: half written, or being removed; look again
            self._refuse(entry, f"version {entry.desired} is not whole: {error}", "incomplete", etag=None)
        except AdapterError as error:
            self._refuse(entry, str(error), "unfit", etag=etag)
        else:
            with self._lock:
                if not entry.unloaded:
                    entry.served, entry.modules = adapter.manifest, len(adapter.weights.layers)
                    entry.reason, entry.etag = None, etag
            manifest = adapter.manifest
            tell(log, "adapter_served", adapter=manifest.reference, rank=manifest.rank, sha256=adapter.digest)

    def _refuse(self, entry: _Entry, reason: str, kind: str, *, etag: str | None) -> None:
        with self._lock:
            news = entry.reason != reason
            entry.reason, entry.etag = reason, etag
            serving = entry.served.reference if entry.served else "nothing"
        if news:
            refused = f"{entry.name}@{entry.desired}"
            tell(log, "adapter_refused", logging.WARNING, adapter=refused, served=serving, code=kind, reason=reason)
            metrics.ADAPTER_REFUSALS.labels(kind).inc()

    def _version(self, name: str, version: int) -> Adapter:
        if cached := self._cache.find(f"{name}@{version}"):
            return cached
        try:
            manifest = read_manifest(self.storage, name, version)
        except StorageMissingError as error:
            raise UnknownAdapterError(f"adapter {name!r} has no version {version} in {self.storage.uri}") from error
        return self._cache.get(manifest)

    def _tell_pins(self) -> None:
        with self._lock:
            pinned = [entry.served for entry in self._entries.values() if entry.pinned and entry.served]
        digests = tuple(manifest.weights.sha256 for manifest in pinned)
        if digests != self._told:
            self._on_pins([self._cache.get(manifest) for manifest in pinned])
            self._told = digests

    def _note_reachable(self, reachable: bool, reason: str) -> None:
        if reachable != self.reachable:
            if not reachable:
                note = "what is loaded keeps serving"
                tell(log, "storage_unreachable", logging.ERROR, storage=self.storage.uri, reason=reason, note=note)
            elif self.reachable is not None:
                tell(log, "storage_reachable", storage=self.storage.uri)
        self.reachable = reachable
        metrics.ADAPTER_STORAGE_REACHABLE.set(reachable)


def _status(entry: _Entry) -> AdapterStatus:
    served = entry.served
    if entry.unloaded:
        state = AdapterState.UNLOADED
    elif served is None:
        state = AdapterState.REFUSED
    else:
        state = AdapterState.READY if entry.reason is None else AdapterState.OUTDATED
    return AdapterStatus(
        name=entry.name,
        state=state,
        desired_version=entry.desired,
        version=served.version if served else None,
        sha256=served.weights.sha256 if served else None,
        rank=served.rank if served else None,
        modules=entry.modules if served else None,
        trigger_words=served.trigger_words if served else (),
        created=served.created if served else None,
        pinned=entry.pinned,
        reason=entry.reason,
        last_used_seconds_ago=None if entry.used_at is None else round(time.monotonic() - entry.used_at, 1),
        requests=entry.requests,
    )


def _unknown(name: str, storage: Storage) -> UnknownAdapterError:
    return UnknownAdapterError(f"adapter {name!r} is not in {storage.uri}; GET /v1/adapters lists what is")

"""The registry: maps each adapter name to the version it stands for now, and keeps the problems of rejected versions.

A thread polls storage every few seconds: one listing has the ETags of all adapters, and the manifests of those with new
ETags are read, many at a time. Weights are downloaded when a request first names the adapter; from then on, a new version is
downloaded and verified whole before it is served. If a version fails, its problem is kept and the version before keeps
serving. A name or version that is not known yet is looked up when a request names it.

Every name fails alone: as long as storage can be listed, anything unreadable is a problem of its own name.

All methods may be called from any thread.
"""

import contextlib
import logging
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor

from longcat.adapter.artifact import missing_adapter
from longcat.adapter.reference import Reference, parse_name, parse_reference
from longcat.errors import (
    AdapterError,
    DiskFullError,
    LithographError,
    StorageMissingError,
    UnknownAdapterError,
    UserError,
)
from longcat.storage.interface import Storage
from service.adapters.cache import AdapterCache
from service.adapters.entry import RegistryEntry
from service.adapters.entry_table import EntryTable
from service.adapters.polling import READERS, StoragePoll
from service.adapters.version_problem import version_problem_of
from service.adapters.versions import NamedVersions
from service.engine.slot_table import Adapter
from service.wire.messages import AdapterStatus

log = logging.getLogger("lithograph")


class Registry:
    """The adapters of one storage, for one base model."""

    def __init__(
        self,
        storage: Storage,
        *,
        cache: AdapterCache,
        most_pinned: int,
        on_pins: Callable[[Sequence[Adapter]], None],
        prefetch: bool = False,
    ) -> None:
        """``on_pins`` is called with the pinned adapters whenever they change. ``prefetch``: download all weights."""
        self.storage = storage
        self._cache = cache
        self._most_pinned = most_pinned
        self._table = EntryTable(storage, cache, prefetch=prefetch)
        self._versions = NamedVersions(storage, cache)
        self._poll = StoragePoll(self._table, self._versions)
        self._on_pins = on_pins
        self._pinned_digests: tuple[str, ...] = ()
        """Digests of the adapters that ``on_pins`` was last called with."""

    def load_required(self, references: Sequence[str]) -> list[str]:
        """Load these adapters, in parallel and before any other; return those that cannot be served."""

        def is_loaded(reference: str) -> bool:
            try:
                self._find(reference)
            except LithographError:  # a rejected adapter is logged already; the caller reports the missing ones
                return False
            except Exception:  # any: the caller retries, and the other adapters still load
                log.exception("loading the required adapter %s failed", reference)
                return False
            return True

        with ThreadPoolExecutor(READERS, "required") as pool:
            loaded = pool.map(is_loaded, references)
        return [reference for reference, is_there in zip(references, loaded, strict=True) if not is_there]

    @property
    def reachable(self) -> bool | None:
        """True if the last poll of storage succeeded; None before the first."""
        return self._poll.reachable

    def poll(self) -> None:
        """Poll storage for new, changed and removed names. Never raises: loaded adapters keep serving."""
        try:
            if self._poll.run():
                self._update_pins()
        except Exception:  # any: it would end the polling thread, and no new version would ever be served
            log.exception("polling adapter storage failed")

    def resolve(self, reference: str) -> Adapter:
        """Return the adapter that a reference means now; download it if it is not cached.

        Raises ``UnknownAdapterError``, ``AdapterError`` with the cause if it is refused, or ``StorageError``.
        """
        adapter = self._find(reference)
        with self._table.lock:
            if (entry := self._table.get(adapter.manifest.name)) is not None:
                entry.used_at = time.monotonic()
                entry.requests += 1
        return adapter

    def load(self, reference: str) -> None:
        """Serve a name again, and process its newest version again. Raises as ``resolve``."""
        requested = parse_reference(reference)
        entry = self._table.discover(requested.name, again=True)
        if requested.version is not None:
            self._version(requested.name, requested.version)
        elif entry.problem is not None:
            raise entry.error()

    def find(self, reference: str) -> AdapterStatus:
        """Return the state of one version, ``name@version``, without loading its weights. Raises as ``resolve``."""
        requested = parse_reference(reference)
        assert requested.version is not None
        with self._table.lock:
            self._check_not_unloaded(requested.name)
        with self._version_errors(requested.name, requested.version):
            manifest = self._versions.manifest(requested.name, requested.version)
        return RegistryEntry(name=manifest.name, desired=manifest.version, served=manifest).status()

    def pin(self, name: str, *, pinned: bool) -> None:
        """Pin or unpin a name: its newest version stays in a slot. Raises ``UserError``, or as ``resolve``."""
        self._find(parse_name(name))
        with self._table.lock:
            if pinned and sum(e.pinned for e in self._table.all() if e.name != name) >= self._most_pinned:
                raise UserError(
                    "too_many_pinned",
                    "{limit} adapters are pinned already, and requests need the remaining slots",
                    remedy="unpin another adapter, or start the server with more --adapter-slots",
                    field="adapter",
                    value=name,
                    limit=self._most_pinned,
                )
            if (entry := self._table.get(name)) is None:  # just removed
                raise _unknown(name, self.storage)
            entry.pinned = pinned
        self._update_pins()

    def unload(self, name: str) -> None:
        """Stop serving a name until it is loaded again. Images being denoised keep it.

        Raises ``AdapterError`` for an invalid name, ``UnknownAdapterError``, or ``StorageError``.
        """
        if self._table.get(parse_name(name)) is None:  # perhaps not found yet: an engine that has just started
            self._table.discover(name)
        with self._table.lock:
            if (entry := self._table.get(name)) is None:  # just removed
                raise _unknown(name, self.storage)
            if entry.served is not None:
                self._cache.drop(entry.served)
            entry.unloaded, entry.pinned, entry.served, entry.before, entry.mark = True, False, None, None, None
        self._update_pins()

    def status(self) -> list[AdapterStatus]:
        """Return the state of all names, in alphabetical order."""
        with self._table.lock:
            return [entry.status() for entry in self._table.all()]

    def _find(self, reference: str) -> Adapter:
        requested = parse_reference(reference)
        with self._table.lock:
            entry = self._check_not_unloaded(requested.name)
        if requested.version is not None:
            return self._version(requested.name, requested.version)
        if entry is None or entry.is_new:
            entry = self._table.discover(requested.name)
        return self._served(entry)

    def _check_not_unloaded(self, name: str) -> RegistryEntry | None:
        """Return the entry of a name, if it has one."""
        entry = self._table.get(name)
        if entry is not None and entry.unloaded:
            raise UnknownAdapterError(
                "adapter_unloaded",
                "is unloaded on this server",
                remedy="load it with POST /v1/adapters/{value}/load",
                field="adapter",
                value=name,
            )
        return entry

    def _served(self, entry: RegistryEntry) -> Adapter:
        """Return the served version of a name; the version before, if its weights fail verification."""
        while True:
            with self._table.lock:
                entry.is_wanted = True
                manifest = entry.served
                if manifest is None:
                    raise entry.error()
            try:
                adapter = self._cache.get(manifest)
            except DiskFullError:
                raise
            except Exception as error:  # any: it is this name's alone
                found = version_problem_of(error, entry.name, manifest.version, self.storage)
                with self._table.lock:
                    entry.fall_back(manifest, found)
                continue
            with self._table.lock:
                if entry.served is manifest:
                    entry.before, entry.verified = None, adapter.digest
            return adapter

    def _version(self, name: str, version: int) -> Adapter:
        """Return a version that a request names."""
        with self._version_errors(name, version):
            return self._cache.get(self._versions.manifest(name, version))

    @contextlib.contextmanager
    def _version_errors(self, name: str, version: int) -> Iterator[None]:
        """Convert errors of one version to ``AdapterError``, so that no other version fails."""
        try:
            yield
        except (AdapterError, DiskFullError):
            raise
        except Exception as error:  # any: only this version fails
            found = version_problem_of(error, name, version, self.storage)
            if not isinstance(error, StorageMissingError):
                raise AdapterError.of([found.problem]) from error
            raise missing_adapter(self.storage, Reference(name=name, version=version)) from error

    def _update_pins(self) -> None:
        with self._table.lock:
            pinned = [entry for entry in self._table.all() if entry.pinned and entry.served]
            digests = tuple(entry.served.weights.sha256 for entry in pinned if entry.served)
        if digests == self._pinned_digests:
            return
        adapters = []
        for entry in pinned:
            try:
                adapters.append(self._served(entry))
            except LithographError:  # rejected, or storage is down: the next poll retries
                continue
        self._on_pins(adapters)
        self._pinned_digests = tuple(adapter.digest for adapter in adapters)


def _unknown(name: str, storage: Storage) -> UnknownAdapterError:
    return UnknownAdapterError(
        "adapter_unknown",
        "does not exist in {storage}",
        remedy="list the adapters with GET /v1/adapters",
        field="adapter",
        value=name,
        storage=storage.uri,
    )

"""The entry table: the state of every adapter name, updated from storage."""

import logging
import threading

from longcat.adapter.artifact import latest_version, missing_adapter, read_manifest
from longcat.adapter.reference import Reference
from longcat.errors import StorageError, StorageMissingError
from longcat.logs import log_event
from longcat.storage.interface import Storage
from service.adapters.cache import AdapterCache
from service.adapters.entry import RegistryEntry
from service.adapters.listing import AdapterListing
from service.adapters.version_problem import version_problem_of

log = logging.getLogger("lithograph")


class EntryTable:
    """The entries of all names. All methods may be called from any thread."""

    def __init__(self, storage: Storage, cache: AdapterCache, *, prefetch: bool) -> None:
        """``prefetch``: download the weights of every name."""
        self.storage = storage
        self.cache = cache
        self.lock = threading.RLock()
        """Protects the fields of all entries."""
        self._prefetch = prefetch
        self._entries: dict[str, RegistryEntry] = {}

    def get(self, name: str) -> RegistryEntry | None:
        """Return the entry of a name, if it has one."""
        return self._entries.get(name)

    def all(self) -> list[RegistryEntry]:
        """Return all entries, in alphabetical order."""
        with self.lock:
            return [self._entries[name] for name in sorted(self._entries)]

    def discover(self, name: str, *, again: bool = False) -> RegistryEntry:
        """Return the entry of a name; process the name if that has not happened yet.

        ``again``: process it anyway, and serve it if it is unloaded. Raises ``UnknownAdapterError`` or ``StorageError``.
        """
        with self.lock:
            entry = self._entries.setdefault(name, RegistryEntry(name=name))
            entry.is_wanted = True
            if again:
                entry.unloaded = False
        try:
            with entry.updating:
                if again or entry.is_new:
                    self.update(entry)
        except StorageError as error:
            with self.lock:
                if entry.is_new or isinstance(error, StorageMissingError):
                    self._entries.pop(name, None)
            if isinstance(error, StorageMissingError):
                self.storage.probe()
                raise missing_adapter(self.storage, Reference(name=name, version=None)) from error
            raise
        return entry

    def changed(self, listing: AdapterListing) -> list[RegistryEntry]:
        """Return the entries to update; names with a problem come last, because they may block a thread."""
        changed = []
        with self.lock:
            for name in sorted(listing.names):
                entry = self._entries.setdefault(name, RegistryEntry(name=name))
                is_due = entry.mark != listing.mark(name, entry.desired)
                if is_due and not entry.unloaded and not entry.is_queued:
                    changed.append(entry)
        return sorted(changed, key=lambda entry: (entry.problem is not None, not entry.is_wanted))

    def update(self, entry: RegistryEntry, listing: AdapterListing | None = None) -> None:
        """Serve the version that ``latest`` names, if it passes verification. The caller holds ``entry.updating``.

        Raises ``StorageMissingError`` without a latest version, and ``StorageError`` if storage cannot be reached.
        """
        desired = None
        try:
            desired = latest_version(self.storage, entry.name)
            manifest = read_manifest(self.storage, entry.name, desired)
            self.cache.check(manifest)
            is_wanted = entry.is_wanted or self._prefetch
            if is_wanted:
                self.cache.get(manifest)
        except Exception as error:  # any: only this name fails
            if desired is None and isinstance(error, StorageMissingError):
                raise
            found = version_problem_of(error, entry.name, desired, self.storage)
            with self.lock:
                entry.desired = desired
                entry.record(found)
                if not found.is_retried and listing is not None:
                    entry.mark = listing.mark(entry.name, desired)
        else:
            with self.lock:
                entry.desired = desired
                entry.mark = None if listing is None else listing.mark(entry.name, desired)
                entry.serve(manifest, is_verified=is_wanted)

    def remove_missing(self, listing: AdapterListing) -> None:
        """Remove the names that are no longer in storage."""
        with self.lock:
            for name in self._entries.keys() - listing.names:
                entry = self._entries[name]
                if entry.created_at > listing.begun_at:
                    continue
                log_event(log, "adapter_gone", adapter=name)
                del self._entries[name]
                if entry.served is not None:
                    self.cache.drop(entry.served)

"""Polling of storage for new, changed and removed adapters, found by their ETags and processed in parallel."""

import logging
import threading
from concurrent.futures import Future, ThreadPoolExecutor, wait

from longcat.errors import StorageError, StorageMissingError
from longcat.logs import log_event
from service.adapters.entry import RegistryEntry
from service.adapters.entry_table import EntryTable
from service.adapters.listing import AdapterListing
from service.adapters.version_problem import version_problem_of
from service.adapters.versions import NamedVersions
from service.observability import metrics

log = logging.getLogger("lithograph")

READERS = 16
"""Threads that read manifests: on S3, a manifest takes two round trips."""
_POLL_SECONDS = 10.0
"""Longest time a poll waits for its readers; unfinished ones continue beside the next poll."""


class StoragePoll:
    """The polling of one storage, by one thread."""

    def __init__(self, table: EntryTable, versions: NamedVersions) -> None:
        self._table = table
        self._versions = versions
        self._readers = ThreadPoolExecutor(READERS, "adapters")
        self.reachable: bool | None = None
        """True if the last poll succeeded; None before the first."""

    def run(self) -> bool:
        """Update the entries that have changed; return False if storage cannot be listed. Never raises."""
        try:
            listing = AdapterListing.of(self._table.storage)
        except StorageError as error:
            self._note_reachable(False, str(error))
            return False
        except Exception:  # any: it would end the polling thread
            log.exception("listing adapter storage failed")
            self._note_reachable(False, "see the log")
            return False
        self._table.remove_missing(listing)
        self._versions.keep_unchanged(listing)
        is_down = threading.Event()
        updates = [self._submit(entry, listing, is_down) for entry in self._table.changed(listing)]
        wait(updates, timeout=_POLL_SECONDS)
        if not is_down.is_set():
            self._note_reachable(True, "")
        return True

    def _submit(self, entry: RegistryEntry, listing: AdapterListing, is_down: threading.Event) -> Future[None]:
        entry.is_queued = True

        def run() -> None:
            try:
                if not is_down.is_set():
                    with entry.updating:
                        self._table.update(entry, listing)
            except StorageMissingError as error:  # a dangling link, or just removed
                found = version_problem_of(error, entry.name, None, self._table.storage)
                with self._table.lock:
                    entry.record(found)
            except StorageError as error:
                is_down.set()
                self._note_reachable(False, str(error))
            except Exception:  # any: the pool would drop it silently
                log.exception("updating adapter %s failed", entry.name)
            finally:
                entry.is_queued = False

        return self._readers.submit(run)

    def _note_reachable(self, reachable: bool, reason: str) -> None:
        if reachable != self.reachable:
            storage = self._table.storage.uri
            if not reachable:
                note = "loaded adapters keep serving"
                log_event(log, "storage_unreachable", logging.ERROR, storage=storage, reason=reason, note=note)
            elif self.reachable is not None:
                log_event(log, "storage_reachable", storage=storage)
        self.reachable = reachable
        metrics.ADAPTER_STORAGE_REACHABLE.set(reachable)

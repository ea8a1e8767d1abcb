"""What training needs of the studio: datasets, jobs and where they run, the memory plan. No torch."""

from studio.config import StudioConfig
from studio.datasets import Datasets, Scans
from studio.job import PlaceName
from studio.jobs import Jobs
from studio.machine import Machine
from studio.places import LocalPlace, Place
from studio.thumbnails import Thumbnails
from studio.uploads import Limits

_UNPACKED = 8
"""Times as large as it comes, an upload may be unpacked; pictures hardly shrink in a zip."""


class Workshop:
    """All of it, below one home."""

    def __init__(self, config: StudioConfig) -> None:
        cache = config.home / "cache"
        self.datasets = Datasets(config.home / "datasets", config.picked_from)
        self.limits = Limits(total_bytes=_UNPACKED * config.max_upload_mib * 2**20)
        self.scans = Scans(cache / "pictures")
        self.thumbnails = Thumbnails(cache / "thumbnails")
        self.machine = Machine()
        places: dict[PlaceName, Place] = {"local": LocalPlace(cache=cache / "training", adapters=config.adapters_uri)}
        if config.cluster is not None:
            from studio.cluster_place import ClusterPlace  # its client takes a second to import

            places["kubernetes"] = ClusterPlace(config.cluster)
        self._stop_jobs = config.stop_jobs
        self.jobs = Jobs(config.home / "jobs", places, parallel=config.parallel_jobs)

    def start(self) -> None:
        """Look after the queue."""
        self.machine.start()
        self.jobs.start()

    def close(self) -> None:
        """Stop; trainings go on, or are suspended."""
        self.jobs.close()
        if self._stop_jobs:
            self.jobs.suspend()
        self.scans.close()
        self.machine.close()

"""How much main memory this process can still get: what the kernel has left, within the limits of its control groups."""

from collections.abc import Iterator
from pathlib import Path


def main_memory_bytes(proc: Path = Path("/proc"), cgroups: Path = Path("/sys/fs/cgroup")) -> int:
    """The least of what is available and of what each control group above this process leaves."""
    import psutil

    available: int = psutil.virtual_memory().available
    return max(0, min([available, *_left(proc, cgroups)]))


def _left(proc: Path, cgroups: Path) -> Iterator[int]:
    """Of every limit; files that can be dropped from the page cache do not count as used."""
    own = proc / "self" / "cgroup"
    for line in own.read_text().splitlines() if own.exists() else ():
        _, controllers, path = line.split(":", 2)
        if controllers and "memory" not in controllers.split(","):
            continue
        root = cgroups / "memory" if controllers else cgroups
        names = ("memory.limit_in_bytes", "memory.usage_in_bytes") if controllers else ("memory.max", "memory.current")
        cached = "total_inactive_file" if controllers else "inactive_file"
        folder = root / path.lstrip("/")
        for group in (folder, *folder.parents):
            if not group.is_relative_to(root):
                break
            limit, used = (group / name for name in names)
            if not limit.exists() or not used.exists() or limit.read_text().strip() == "max":
                continue
            yield int(limit.read_text()) - int(used.read_text()) + _number(group / "memory.stat", cached)


def _number(path: Path, key: str) -> int:
    words = (line.split() for line in path.read_text().splitlines()) if path.exists() else ()
    return next((int(pair[1]) for pair in words if pair[0] == key), 0)

"""The settings of a run of the kit, which every process gets. No torch."""

import json
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Self


@dataclass(frozen=True, kw_only=True)
class Settings:
    """The settings of a run."""

    device: str
    """cpu, cuda or cuda:N."""
    size: str
    """full: the sizes of LongCat-Image; embedded: those of the embedded model."""
    model: str | None
    """A flavour, directory or hub id with real weights; None makes random ones."""
    scratch: str
    """A directory for a model's files, storage and trainings."""
    is_short: bool
    only: str = ""
    """Run the checks whose group and name contain this."""

    @property
    def is_full(self) -> bool:
        """True at the sizes of LongCat-Image."""
        return self.size == "full"

    @property
    def is_cpu(self) -> bool:
        """True if no GPU computes."""
        return self.device == "cpu"

    @property
    def folder(self) -> Path:
        """The directory of files, as a path."""
        return Path(self.scratch)

    def to_json(self) -> str:
        """Return the settings for another process."""
        return json.dumps(asdict(self))

    @classmethod
    def from_json(cls, text: str) -> Self:
        """Read what ``to_json`` returned."""
        return cls(**json.loads(text))

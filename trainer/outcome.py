"""How a training ends, as a number that a Job's podFailurePolicy can tell apart."""

from collections.abc import Mapping
from enum import IntEnum

from longcat.errors import DataError, StorageError, UserError


class Outcome(IntEnum):
    """Exit codes. Those of ``sysexits.h`` where one fits; 137 and 143 are the kernel's and the shell's."""

    FINISHED = 0
    UNKNOWN = 1
    """A defect of ours, or something unforeseen: the log says what. Worth another try."""
    BAD_DATA = 65
    """The pictures or captions cannot be used: trying again is no use."""
    STORAGE_DOWN = 69
    """Storage or the models' hub could not be reached, or the disk is full; an adapter that was done is in output_dir. Try
    again."""
    OUT_OF_MEMORY = 71
    """It does not fit: see ``lithograph plan``."""
    PREEMPTED = 75
    """Told to stop; a checkpoint is saved, and another try goes on from it."""
    BAD_CONFIG = 78
    """The configuration cannot work: trying again is no use."""


MEANINGS: Mapping[Outcome, str] = {
    Outcome.FINISHED: "finished and published",
    Outcome.UNKNOWN: "failed unforeseen: the log says how",
    Outcome.BAD_DATA: "the data cannot be used: `lithograph dataset check` says why",
    Outcome.STORAGE_DOWN: "storage, disk or the models' hub failed; the adapter, if it was done, is in output_dir",
    Outcome.OUT_OF_MEMORY: "out of memory: `lithograph plan` says what fits",
    Outcome.PREEMPTED: "told to stop; a checkpoint is saved, starting again goes on",
    Outcome.BAD_CONFIG: "the configuration cannot work: the log says which option",
}
"""For people."""


def outcome_of(error: BaseException) -> Outcome:
    """The exit code for what went wrong."""
    import torch  # here: who only reads exit codes needs none of it

    match error:
        case DataError():
            return Outcome.BAD_DATA
        case StorageError():
            return Outcome.STORAGE_DOWN
        case UserError():
            return Outcome.BAD_CONFIG
        case torch.OutOfMemoryError() | MemoryError():
            return Outcome.OUT_OF_MEMORY
        case RuntimeError() if "can't allocate memory" in str(error):  # a CPU's allocator
            return Outcome.OUT_OF_MEMORY
    return Outcome.UNKNOWN

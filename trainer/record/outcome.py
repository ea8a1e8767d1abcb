"""The ends of a training and their exit codes, which a Job's podFailurePolicy distinguishes. Importing it needs no torch."""

import signal
from collections.abc import Mapping
from enum import IntEnum

from longcat.errors import LithographError
from longcat.problem import Problem
from longcat.storage.disk import disk_full, is_disk_full, path_of


class Outcome(IntEnum):
    """Exit codes. They are those of ``sysexits.h`` where one fits; those above 128 are left to signals."""

    FINISHED = 0
    UNKNOWN = 1
    """A defect or an unexpected error, which the log describes. A retry may succeed."""
    BAD_DATA = 65
    """The pictures or captions cannot be used. A retry fails again."""
    STORAGE_DOWN = 69
    """Storage or the model hub cannot be reached, or the disk is full. A finished adapter is in output_dir: retry."""
    OUT_OF_MEMORY = 71
    """The training does not fit: see ``lithograph plan``."""
    PREEMPTED = 75
    """Stopped by a signal with a checkpoint saved. A retry continues from it."""
    GATED = 77
    """Trained, and not published: the adapter does not meet the thresholds of the configuration. A retry does the same."""
    BAD_CONFIG = 78
    """The configuration is invalid. A retry fails again."""


INTERRUPTED, KILLED, TERMINATED = (128 + number for number in (signal.SIGINT, signal.SIGKILL, signal.SIGTERM))
"""Exit codes that a shell or the kernel gives a process that a signal ended."""

OUTCOMES: Mapping[str, Outcome] = {
    "error": Outcome.UNKNOWN,
    "invalid_request": Outcome.BAD_CONFIG,
    "invalid_flavour": Outcome.BAD_CONFIG,
    "unsupported_precision": Outcome.BAD_CONFIG,
    "unsupported_device": Outcome.BAD_CONFIG,
    "invalid_recipe": Outcome.BAD_CONFIG,
    "invalid_config": Outcome.BAD_CONFIG,
    "invalid_data": Outcome.BAD_DATA,
    "invalid_job": Outcome.BAD_CONFIG,
    "job_not_found": Outcome.BAD_CONFIG,
    "job_name_taken": Outcome.BAD_CONFIG,
    "publication_gated": Outcome.GATED,
    "invalid_adapter": Outcome.BAD_CONFIG,
    "adapter_not_found": Outcome.BAD_CONFIG,
    "no_adapter_storage": Outcome.BAD_CONFIG,
    "storage_unreachable": Outcome.STORAGE_DOWN,
    "disk_full": Outcome.STORAGE_DOWN,
    "hub_unreachable": Outcome.STORAGE_DOWN,
    "storage_key_not_found": Outcome.STORAGE_DOWN,
    "storage_conflict": Outcome.STORAGE_DOWN,
    "cluster_unreachable": Outcome.UNKNOWN,
    "timeout": Outcome.UNKNOWN,
    "engine_error": Outcome.UNKNOWN,
}
"""The outcome of an error, by its class's code. A test holds that every class of ``longcat.errors`` has one."""

MEANINGS: Mapping[Outcome, Problem] = {
    Outcome.FINISHED: Problem(code="exit_finished", template="finished and published"),
    Outcome.UNKNOWN: Problem(
        code="exit_unknown", template="failed for an unforeseen reason", remedy_template="see the log"
    ),
    Outcome.BAD_DATA: Problem(
        code="exit_bad_data",
        template="the training data cannot be used",
        remedy_template="run `lithograph dataset check`, which lists the reasons",
    ),
    Outcome.STORAGE_DOWN: Problem(
        code="exit_storage_down",
        template="storage, the disk or the model hub failed",
        remedy_template="check them and start again; an adapter that was finished is in output_dir",
    ),
    Outcome.OUT_OF_MEMORY: Problem(
        code="exit_out_of_memory",
        template="out of memory",
        remedy_template="run `lithograph plan`, which shows what fits",
    ),
    Outcome.PREEMPTED: Problem(
        code="exit_preempted",
        template="stopped by a signal, with a checkpoint saved",
        remedy_template="start again to continue from it",
    ),
    Outcome.GATED: Problem(
        code="exit_gated",
        template="trained, and not published: the adapter does not meet the thresholds of the configuration",
        remedy_template="run `lithograph report`, which shows its figures; the adapter is in output_dir",
    ),
    Outcome.BAD_CONFIG: Problem(
        code="exit_bad_config",
        template="the configuration cannot work",
        remedy_template="see the log, which names the option",
    ),
}
"""Descriptions of the outcomes, for people."""


def outcome_of(error: BaseException) -> Outcome:
    """Return the outcome of a training that this error ended."""
    if isinstance(error, LithographError):
        return OUTCOMES.get(error.code, Outcome.UNKNOWN)
    if is_disk_full(error):
        return Outcome.STORAGE_DOWN
    return Outcome.OUT_OF_MEMORY if _is_out_of_memory(error) else Outcome.UNKNOWN


def problems_of(error: BaseException) -> tuple[Problem, ...]:
    """Return the problems of any error, for records that other processes translate."""
    if isinstance(error, LithographError):
        return error.problems
    if is_disk_full(error):
        return disk_full(path_of(error)).problems
    if _is_out_of_memory(error):
        problem = Problem(
            code="out_of_memory",
            template="out of memory: {reason}",
            remedy_template="lower train_batch_size, resolution or lora_rank, set gradient_checkpointing true, "
            "base_model_precision int8-quanto or enable_group_offload; `lithograph plan` shows what fits",
            details={"reason": next(iter(str(error).splitlines()), type(error).__name__)},
        )
        return (problem,)
    return (
        Problem(
            code="unforeseen_error",
            template="{kind}: {reason}",
            details={"kind": type(error).__name__, "reason": str(error)},
        ),
    )


def _is_out_of_memory(error: BaseException) -> bool:
    if isinstance(error, MemoryError):
        return True
    # torch.OutOfMemoryError is a RuntimeError, found by its name so that readers of exit codes need no torch. A CPU's
    # allocator raises a bare RuntimeError.
    names = {kind.__name__ for kind in type(error).__mro__}
    return isinstance(error, RuntimeError) and ("OutOfMemoryError" in names or "can't allocate memory" in str(error))

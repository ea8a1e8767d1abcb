"""torchrun with the trainer's exit code: ``python -P -m trainer.loop.launch [torchrun's options] -m lithograph train ...``.

torchrun itself exits with 1 after every failure, so that a Job's podFailurePolicy could not tell a preemption from a wrong
configuration.
"""

import os
import sys

from torch.distributed.elastic.multiprocessing.api import SignalException
from torch.distributed.elastic.multiprocessing.errors import ChildFailedError
from torch.distributed.run import parse_args, run

from longcat.process.parent import PARENT_OPTION
from trainer.record.outcome import Outcome

_COMMAND = "lithograph"
_SIGNAL_OFFSET = 128
"""Shells report 128 plus the number of the signal that ended a process."""


def launch(arguments: list[str]) -> int:
    """Run torchrun; return the exit code of the process that failed first, or 0."""
    if _COMMAND in arguments:  # torchrun's processes would outlive it
        after = arguments.index(_COMMAND) + 1
        arguments = [*arguments[:after], PARENT_OPTION, str(os.getpid()), *arguments[after:]]
    try:
        run(parse_args(arguments))
    except ChildFailedError as error:
        _, failure = error.get_first_failure()
        return failure.exitcode if failure.exitcode > 0 else _SIGNAL_OFFSET - failure.exitcode
    except SignalException:  # torchrun has passed the signal on, and waited for the processes to save
        return Outcome.PREEMPTED
    return Outcome.FINISHED


if __name__ == "__main__":
    # The processes that torchrun starts with -m do not import from the working directory, as `python -P` has it.
    os.environ.setdefault("PYTHONSAFEPATH", "1")
    sys.exit(int(launch(sys.argv[1:])))

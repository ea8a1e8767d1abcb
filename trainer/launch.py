"""torchrun that ends as the trainer does: ``python -m trainer.launch [torchrun's options] -m lithograph train ...``.

torchrun itself ends with 1 whatever happened, and a Job's podFailurePolicy could not tell a preemption from a mistake.
"""

import sys

from torch.distributed.elastic.multiprocessing.api import SignalException
from torch.distributed.elastic.multiprocessing.errors import ChildFailedError
from torch.distributed.run import parse_args, run

from trainer.outcome import Outcome

_SHELL = 128
"""What shells add to the number of the signal that a process died of."""


def launch(arguments: list[str]) -> int:
    """The exit code of the process that failed first, or 0."""
    try:
        run(parse_args(arguments))  # type: ignore[no-untyped-call]
    except ChildFailedError as error:
        _, failure = error.get_first_failure()
        return failure.exitcode if failure.exitcode > 0 else _SHELL - failure.exitcode
    except SignalException:  # its processes were told, too, and have had their time to save
        return Outcome.PREEMPTED
    return Outcome.FINISHED


if __name__ == "__main__":
    sys.exit(int(launch(sys.argv[1:])))

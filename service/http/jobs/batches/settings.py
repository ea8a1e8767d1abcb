"""The configuration of batches, a group of the service's options."""

from typing import Annotated

from pydantic import Field

from longcat.options import Configuration, Flag


class BatchConfig(Configuration):
    """Batches of requests (OpenAI's /v1/files and /v1/batches), which a server with --jobs-storage takes."""

    max_bytes: Annotated[int, Field(ge=1024, le=2**31), Flag(name="max-batch-bytes")] = 100 * 2**20
    """Largest file that is uploaded for a batch."""
    max_lines: Annotated[int, Field(ge=1, le=100_000), Flag(name="max-batch-lines")] = 10_000
    """Most requests of one batch, each a line of its file."""
    lines_at_a_time: Annotated[int, Field(ge=1, le=1000), Flag(name="batch-lines-at-a-time")] = 8
    """Most requests of one batch that are in the queue or running at a time. All batches together use at most half of
    max_queue."""

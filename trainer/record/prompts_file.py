"""Validation prompts that are changed while a training runs: ``output_dir/validation_prompts.json``. No torch.

::

    {"prompts": ["a cat, ink style", "一只猫，版画"]}

The trainer reads the file before each validation, and when it starts. Replace it as a whole (write another file, then rename
it), so that it is never read half written. It stands for ``validation_prompt``, ``validation_prompts`` and
``user_prompt_library``.
"""

from pathlib import Path
from typing import Annotated

from pydantic import BaseModel, ConfigDict, Field, StringConstraints, ValidationError

from longcat.errors import DataError
from longcat.problem import reason_of
from longcat.storage.atomic import write_atomically
from longcat.validation import problems_of

PROMPTS_FILE = "validation_prompts.json"
MOST_PROMPTS = 32
_Prompt = Annotated[str, StringConstraints(strip_whitespace=True, min_length=1, max_length=20_000)]


class ChangedPrompts(BaseModel):
    """The content of the file."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    prompts: Annotated[tuple[_Prompt, ...], Field(min_length=1, max_length=MOST_PROMPTS)]


def read_changed_prompts(output_dir: Path) -> tuple[str, ...] | None:
    """Return the changed prompts; None if there is no file. Raises ``DataError`` if it cannot be used."""
    path = output_dir / PROMPTS_FILE
    try:
        return ChangedPrompts.model_validate_json(path.read_bytes()).prompts
    except FileNotFoundError:
        return None
    except (OSError, ValidationError) as error:
        reason = next(problems_of(error, ChangedPrompts)) if isinstance(error, ValidationError) else reason_of(error)
        raise DataError(
            "changed_prompts_unusable", "cannot be used: {reason}", remedy='give {{"prompts": ["…"]}}',
            field="file", value=str(path), reason=reason,
        ) from error  # fmt: skip


def write_changed_prompts(output_dir: Path, prompts: ChangedPrompts) -> None:
    """Replace the file as a whole. Raises ``StorageError``."""
    write_atomically(output_dir / PROMPTS_FILE, prompts.model_dump_json(indent=1).encode() + b"\n")

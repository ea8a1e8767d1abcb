"""``validation_input``: pictures that validation edits, each with its instruction. No torch."""

import json
from typing import Annotated

from pydantic import BaseModel, ConfigDict, Field

from trainer.config.reading.paths import FilePath


class ValidationInput(BaseModel):
    """A picture that validation edits."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    path: FilePath
    prompt: Annotated[str, Field(min_length=1)]
    shortname: str | None = None
    """A label, as SimpleTuner has it; pictures are named by what decides them."""
    name: str | None = None


def parse_inputs(given: object) -> object:
    """Return the list in a text, as an option of a command has it; anything else as it is."""
    if isinstance(given, str):
        try:
            return json.loads(given) if given.strip() else ()
        except (ValueError, RecursionError):
            return given
    return () if given is None else given

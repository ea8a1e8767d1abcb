"""Adapter names of a lasting job, pinned to the versions that they mean when it is taken."""

from dataclasses import replace

from service.http.adapters import AdapterCommands
from service.wire.messages import GenerateCommand


async def pinned(command: GenerateCommand, adapters: AdapterCommands) -> GenerateCommand:
    """Return a command that names versions, so that a later start generates the same pictures.

    A name that is not served stays, so that the job ends with its error. Raises ``UnavailableError``.
    """
    choices = command.request.adapters
    if all("@" in choice.name for choice in choices):
        return command
    versions = {status.name: status.version for status in (await adapters.report()).adapters}
    request = command.request.model_copy(
        update={
            "adapters": tuple(
                choice.model_copy(update={"name": f"{choice.name}@{version}"})
                if (version := versions.get(choice.name)) is not None
                else choice
                for choice in choices
            )
        }
    )
    return replace(command, request=request)

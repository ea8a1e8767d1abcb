"""Sampling that adapters declare: defaults of the requests that name them (``longcat.adapter.manifest.Sampling``)."""

from collections.abc import Sequence

from longcat.adapter.manifest import Manifest
from longcat.errors import UserError
from service.wire.messages import GenerateCommand
from service.wire.schema import ResolvedRequest


def with_defaults_of(manifests: Sequence[Manifest], command: GenerateCommand) -> ResolvedRequest:
    """Return a command's request with the sampling of its adapters in the fields that the client has left out.

    Steps are at most as many as the server allows. Raises ``UserError`` if two adapters declare different values.
    """
    declared = [manifest for manifest in manifests if manifest.sampling is not None]
    changes: dict[str, int | float] = {}
    for field in command.defaulted:
        values = {manifest.name: getattr(manifest.sampling, field) for manifest in declared}
        if len(set(values.values())) > 1:
            raise UserError(
                "adapters_differ_in_sampling",
                "is left out, and the adapters {adapters} were made for different values",
                remedy="give {field} in the request",
                field=field,
                adapters=", ".join(f"{name} ({value:g})" for name, value in values.items()),
            )
        if values:
            changes[field] = next(iter(values.values()))
    if "steps" in changes:
        changes["steps"] = min(int(changes["steps"]), command.max_steps)
    return command.request.model_copy(update=changes) if changes else command.request

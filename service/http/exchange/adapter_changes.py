"""The changes of adapters that engines keep in memory alone. An engine process that starts later repeats them."""

import time
import uuid

from service.wire.messages import AdapterAction, AdapterCommand

_SECONDS = 600.0
"""Time limit of a repeated command."""


class AdapterChanges:
    """The names that are pinned or unloaded. Methods may be called from any thread."""

    def __init__(self) -> None:
        self._kept: dict[str, AdapterAction] = {}

    def record(self, action: AdapterAction, reference: str) -> None:
        """Note an action that an engine has carried out."""
        name = reference.partition("@")[0]
        kept = self._kept.get(name)
        match action:
            case AdapterAction.PIN | AdapterAction.UNLOAD:
                self._kept[name] = action
            case AdapterAction.UNPIN if kept is AdapterAction.PIN:
                del self._kept[name]
            case AdapterAction.LOAD | AdapterAction.IMPORT if kept is AdapterAction.UNLOAD:
                del self._kept[name]
            case AdapterAction.REMOVE:
                self._kept.pop(name, None)

    def commands(self) -> list[AdapterCommand]:
        """Return the commands that repeat them. No process waits for their replies."""
        deadline = time.monotonic() + _SECONDS
        return [
            AdapterCommand(id=str(uuid.uuid4()), action=action, deadline=deadline, name=name)
            for name, action in list(self._kept.items())
        ]

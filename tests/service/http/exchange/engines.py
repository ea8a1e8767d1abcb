"""Engines without processes, and requests to them."""

import math
from typing import Any

from service.http.exchange.exchange import Exchange
from service.http.exchange.mailboxes import EngineMailbox
from service.wire.messages import Command, GenerateCommand, Heartbeat, engine_mailbox
from service.wire.schema import ResolvedRequest
from service.wire.state import ServicePhase, ServiceState

_FIELDS = {
    "prompt": "一只猫", "negative_prompt": "", "width": 64, "height": 64, "steps": 4, "guidance_scale": 2.0, "seed": 1,
    "num_images": 1, "cfg_renorm": True, "rewrite_prompt": False, "output_format": "png",
}  # fmt: skip


def resolved(**fields: Any) -> ResolvedRequest:
    return ResolvedRequest(**_FIELDS | fields)


def command_of(name: str, **fields: Any) -> GenerateCommand:
    return GenerateCommand(id=name, request_id=name, request=resolved(**fields), submitted_at=0.0, deadline=math.inf)


class Engines:
    """Ready engines, and the commands that each was sent."""

    def __init__(self, number: int) -> None:
        self.state = ServiceState([f"cpu:{i}" for i in range(number)])
        self.mailboxes: dict[str, Any] = {}
        self.exchange = Exchange(self.mailboxes, self.state, max_requests=8, pictures_at_a_time=1, stall_seconds=10)
        self.sent: list[list[Command]] = [[] for _ in range(number)]
        self.exchange.connect([lambda item, i=i: self.sent[i].append(item[1]) for i in range(number)])
        for engine in self.state.engines:
            engine.count_process()
            engine.begin(ServicePhase.READY)

    def put(self, number: int, message: Heartbeat | None) -> None:
        """Put a message of an engine into its mailbox."""
        mailbox: EngineMailbox = self.mailboxes[engine_mailbox(number)]
        mailbox.append((message, None))

    def requests(self, number: int) -> list[str]:
        """Return the ids of the requests that an engine was sent."""
        return [command.id for command in self.sent[number] if isinstance(command, GenerateCommand)]

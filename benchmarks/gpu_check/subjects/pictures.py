"""Pictures of the engine in this process: requests that are generated together, and how each ended."""

import io
import math
import time
from typing import Any

import numpy as np
from PIL import Image

from benchmarks.gpu_check.checks import Failed
from longcat.model.loading import Components
from longcat.model.tokenizer import plain_ids
from service.engine.engine import Engine
from service.wire.events import ErrorEvent, Event, ResultEvent
from service.wire.limits import Limits
from service.wire.messages import GenerateCommand
from service.wire.picture import ModelIdentity, PictureWriter
from service.wire.provenance.settings import ProvenanceConfig
from service.wire.schema import GenerateRequest

_WAIT_SECONDS = 0.05


class EngineRun:
    """An engine without adapters, and the outcomes of its requests by their names."""

    def __init__(self, model: Components, *, max_rows: int = 12, background: bool = True) -> None:
        """``background``: as for the engine; False with offloaded weights."""
        flavour = model.flavour
        identity = ModelIdentity(
            flavour=flavour.name, revision=flavour.revision, hash=flavour.hash, precision=model.precision.value,
            text_encoder_precision=model.text_encoder_precision.value, dtype=str(model.dtype).removeprefix("torch."),
        )  # fmt: skip
        self.engine = Engine(
            model, PictureWriter(identity, ProvenanceConfig()), max_rows=max_rows, background=background
        )
        self.outcomes: dict[str, ResultEvent | ErrorEvent] = {}
        self._limits = Limits.of_model(flavour, has_adapters=False)
        self._tokenize = plain_ids(model.tokenizer)
        self._submitted = 0

    def submit(self, name: str, **fields: Any) -> None:
        """Queue a request: the fields of ``POST /generate``."""
        request = self._limits.resolve(
            GenerateRequest.model_validate({"prompt": "一只猫", "seed": 1} | fields), self._tokenize
        )
        command = GenerateCommand(
            id=name, request_id=name, request=request, submitted_at=time.monotonic(), deadline=math.inf
        )

        def on_event(event: Event) -> None:
            if isinstance(event, ResultEvent | ErrorEvent):
                self.outcomes[name] = event

        self._submitted += 1
        self.engine.submit(command, on_event)

    def run(self) -> float:
        """Step until all requests are over; return the seconds."""
        begin = time.monotonic()
        while len(self.outcomes) < self._submitted:
            self.engine.step(_WAIT_SECONDS)
        return time.monotonic() - begin

    def pixels(self, name: str) -> np.ndarray:
        """Return a request's first picture, (H, W, 3). Raises ``Failed`` if the request failed."""
        outcome = self.outcomes[name]
        if isinstance(outcome, ErrorEvent):
            raise Failed(f"request {name}: {outcome.error}")
        return read_pixels(outcome.images[0].content)


def read_pixels(content: bytes) -> np.ndarray:
    """Return the pixels of a picture file, (H, W, 3) in float32."""
    with Image.open(io.BytesIO(content)) as image:
        return np.asarray(image.convert("RGB")).astype(np.float32)

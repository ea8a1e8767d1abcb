"""An engine with adapters, whose steps a test makes and whose events it reads."""

import math
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from datetime import UTC, datetime
from typing import Any

from longcat.adapter.manifest import BaseIdentity, Manifest, Sampling, WeightsIdentity
from longcat.adapter.modules import lora_targets
from longcat.adapter.weights.lora import LoraWeights
from longcat.errors import LithographError, UnknownAdapterError
from longcat.model.loading import Components
from longcat.sampling.encoding.source_picture import SourcePicture
from service.engine.engine import Engine
from service.engine.slot_table import Adapter
from service.wire.events import ErrorEvent, Event, ResultEvent, StepEvent
from service.wire.messages import GenerateCommand
from service.wire.picture import ModelIdentity, PictureWriter
from service.wire.provenance.settings import ProvenanceConfig
from service.wire.schema import NORMAL, AdapterChoice, Priority, ResolvedRequest
from tests.longcat.sampling.test_layers_beside_blocks import beside
from tests.longcat.sampling.test_slots import random_lora


def as_adapter(name: str, weights: LoraWeights, model: Components, sampling: Sampling | None = None) -> Adapter:
    manifest = Manifest(
        base=BaseIdentity(flavour="embedded", revision=None, hash=model.flavour.hash),
        rank=weights.rank,
        alpha=weights.alpha,
        target_modules=tuple(weights.layers),
        tensors=2 * len(weights.layers),
        sampling=sampling,
        origin="trained",
        name=name,
        version=1,
        created=datetime.now(UTC),
        weights=WeightsIdentity(sha256=name.encode().hex().rjust(64, "0"), size_bytes=1),
    )
    return Adapter(manifest=manifest, weights=weights)


class Adapters:
    """An adapter source with six adapters, one that changes every layer, and a slow one."""

    def __init__(self, model: Components) -> None:
        self.is_downloaded = threading.Event()
        """Set when the slow adapter is downloaded."""
        targets = lora_targets(model.transformer)
        self._there = {f"a{i}": as_adapter(f"a{i}", random_lora(targets, seed=i), model) for i in range(6)}
        self._there["turbo"] = as_adapter(
            "turbo", random_lora(targets, seed=7), model, Sampling(steps=2, guidance_scale=1.0)
        )
        self._there["whole"] = as_adapter("whole", beside(model, seed=6, only=("",), rank=4, uses_dora=True), model)

    def resolve(self, reference: str) -> Adapter:
        if reference == "slow":
            self.is_downloaded.wait(60)
        if reference not in self._there:
            raise UnknownAdapterError("no_adapter", "does not exist", field="adapters", value=reference)
        return self._there[reference]


class EngineHarness:
    """An engine, and its events in order."""

    def __init__(self, model: Components, **options: Any) -> None:
        self.events: list[tuple[str, Event]] = []
        identity = ModelIdentity(
            flavour="embedded",
            revision=None,
            hash=model.flavour.hash,
            precision="no_change",
            text_encoder_precision="no_change",
            dtype="float32",
        )
        pictures = PictureWriter(identity, ProvenanceConfig())
        self.engine = Engine(model, pictures, adapter_rank=16, **{"max_rows": 4} | options)
        self.adapters = self.engine.workers.source = Adapters(model)

    def submit(
        self,
        name: str,
        *adapters: str,
        deadline: float = math.inf,
        previews: int = 0,
        defaulted: tuple[str, ...] = (),
        key: str | None = None,
        share: float = 1.0,
        priority: Priority = NORMAL,
        picture: SourcePicture | None = None,
        **fields: Any,
    ) -> None:
        defaults: dict[str, Any] = {
            "prompt": "一只猫", "negative_prompt": "", "width": 64, "height": 64, "steps": 4, "guidance_scale": 2.0,
            "seed": 1, "num_images": 1, "cfg_renorm": True, "rewrite_prompt": False, "output_format": "png",
        }  # fmt: skip
        choices = tuple(AdapterChoice(name=reference) for reference in adapters)
        command = GenerateCommand(
            id=name,
            request_id=name,
            request=ResolvedRequest(adapters=choices, **defaults | fields),
            picture=picture,
            defaulted=defaulted,
            submitted_at=time.monotonic(),
            deadline=deadline,
            key=key,
            share=share,
            priority=priority,
            progress=True,
            previews=previews,
        )
        self.engine.submit(command, lambda event: self.events.append((name, event)))

    def settle(self) -> None:
        """Wait until the background threads are idle, without making a step."""
        for pool in (
            self.engine.workers._downloads,
            self.engine.workers._workers,
        ):  # a request passes from the downloads to the workers
            assert isinstance(pool, ThreadPoolExecutor)
            all_idle = threading.Barrier(pool._max_workers)
            list(pool.map(lambda _, idle=all_idle: idle.wait(60), range(pool._max_workers)))

    def run(self, requests: int) -> None:
        """Step until that many requests are over."""
        deadline = time.monotonic() + 120
        while len(self.outcomes) < requests:
            self.engine.step(0.05)
            assert time.monotonic() < deadline, self.events

    @property
    def outcomes(self) -> dict[str, ResultEvent | ErrorEvent]:
        return {name: event for name, event in list(self.events) if isinstance(event, ResultEvent | ErrorEvent)}

    @property
    def steps(self) -> list[str]:
        return [name for name, event in self.events if isinstance(event, StepEvent)]

    def pictures(self, name: str) -> list[bytes]:
        outcome = self.outcomes[name]
        assert isinstance(outcome, ResultEvent), outcome
        return [picture.content for picture in outcome.images]

    def error(self, name: str) -> LithographError:
        outcome = self.outcomes[name]
        assert isinstance(outcome, ErrorEvent), outcome
        return outcome.error

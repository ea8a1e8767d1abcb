"""The training loop: forwards, gradients, steps, checkpoints.

What comes next follows from the state that a checkpoint holds and from the step's number alone; that is why a run that is
killed and resumed ends, on a CPU, with the same bits.
"""

import logging
import math
import time
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from diffusers import LongCatImageTransformer2DModel
from diffusers.training_utils import EMAModel
from torch import Tensor, nn

from longcat.errors import ConfigError
from longcat.logs import tell
from longcat.lora import LoraWeights
from trainer.checkpoint import find_checkpoint, save_checkpoint
from trainer.config import TrainConfig
from trainer.interruption import Interruption
from trainer.lora import load_weights, weights_of
from trainer.optimizer import make_optimizer, make_schedule, settle
from trainer.progress import Progress, StepReport
from trainer.publish import hash_of
from trainer.sampler import Sampler
from trainer.step import Batches, loss_of
from trainer.world import World

_LOSSES = 100
"""Averages that an adapter's manifest lists."""
_INDECISIVE = {
    "output_dir", "cache_dir", "checkpointing_steps", "checkpoints_total_limit", "resume_from_checkpoint", "report_to",
    "tracker_run_name", "metrics_port", "pushgateway_url", "publish_to", "publish_endpoint_url", "adapter_name", "device",
    "vae_batch_size", "gradient_checkpointing", "gradient_checkpointing_interval", "data_backend_config",
    "instance_data_dir", "max_train_steps", "num_train_epochs", "fsdp_enable",
}  # fmt: skip
"""Options under which a run is still the same one; what is trained on is compared by its hash."""

_log = logging.getLogger("lithograph.trainer")


@dataclass(frozen=True, kw_only=True)
class Trainee:
    """The model as it is trained."""

    transformer: LongCatImageTransformer2DModel
    parameters: list[nn.Parameter]
    dtype: torch.dtype


class Loop:
    """Steps from wherever it stands to the last. Every process makes one; the first one writes."""

    def __init__(
        self,
        config: TrainConfig,
        trainee: Trainee,
        batches: Batches,
        sampler: Sampler,
        world: World,
        *,
        steps: int,
        dataset_hash: str,
    ) -> None:
        self.steps = steps
        self.step = 0
        self._config = config
        self._trainee = trainee
        self._batches = batches
        self._sampler = sampler
        self._world = world
        self._dataset_hash = dataset_hash
        decisive = config.model_dump(mode="json", exclude=_INDECISIVE)
        self._decisive = hash_of(decisive | {"processes": world.size, "steps": _steps_matter(config, steps)})
        self._shared = world.shared(trainee.transformer)
        self._optimizer = make_optimizer(trainee.parameters, config)
        self._schedule = make_schedule(self._optimizer, config, steps=steps)
        self._ema: EMAModel | None = None
        if config.use_ema:
            self._ema = EMAModel(trainee.parameters, decay=config.ema_decay, foreach=True)
        self._losses: deque[float] = deque(maxlen=_LOSSES)
        self._recent: list[float] = []

    @property
    def losses(self) -> tuple[float, ...]:
        """Averages over tenths of a hundredth of the run, oldest first."""
        return tuple(self._losses)

    def resume(self) -> None:
        """Go on from the configured checkpoint, if there is one. Raises ``ConfigError`` if it belongs to another run."""
        wanted = self._config.resume_from_checkpoint
        if wanted is None:
            return
        found = find_checkpoint(self._config.output_dir / "checkpoints", wanted)
        if found is None:
            tell(_log, "no_checkpoint", note="starting from the beginning")
            return
        if found.said.decisive != self._decisive:
            note = "the checkpoint was made with other options: what follows is not the run that it came from"
            tell(_log, "resumed_under_other_options", logging.WARNING, note=note)
        if found.said.dataset_hash != self._dataset_hash:
            note = "the pictures or captions have changed since the checkpoint"
            tell(_log, "resumed_with_other_data", logging.WARNING, note=note)
        load_weights(self._trainee.transformer, found.weights, self._config.output_dir)
        self._optimizer.load_state_dict(found.state["optimizer"])
        self._schedule.load_state_dict(found.state["schedule"])
        if self._ema is not None and "ema" in found.state:
            self._ema.load_state_dict(found.state["ema"])
        self._losses.extend(found.said.losses)
        self._recent = found.state["recent"]
        self.step = found.said.step

    def run(
        self, progress: Progress, interruption: Interruption, *, validate: Callable[[int, LoraWeights], object]
    ) -> bool:
        """Train to the last step, or until interrupted, with a checkpoint either way; whether the end was reached.

        Raises ``ConfigError`` if the loss is no number: trying again would end there again.
        """
        config, world = self._config, self._world
        progress.phase("training")
        self._trainee.transformer.train()
        saved = self.step
        if self._validates() and world.any(world.is_first and not progress.has_validated(self.step)):
            validate(self.step, self.result())  # killed after the checkpoint, before the pictures
            progress.phase("training")
        while self.step < self.steps:
            report = self.advance()
            if world.is_first:
                progress.step(report)
            if not math.isfinite(report.loss):
                raise ConfigError(
                    f"the loss is {report.loss} at step {self.step}: lower learning_rate, or compute in mixed_precision "
                    f"bf16 or no; the last good checkpoint is of step {saved}"
                )
            stop = world.any(interruption.requested)
            done = self.step == self.steps
            if stop or done or self.step % config.checkpointing_steps == 0:
                saved = self._save(progress)
            if stop and not done:
                return False
            if self._validates():
                validate(self.step, self.result())
                progress.phase("training")
                if world.any(interruption.requested):
                    if saved < self.step:
                        self._save(progress)
                    return False
        return True

    def result(self) -> LoraWeights:
        """The adapter as it would be published: averaged, if so configured."""
        settle(self._optimizer, training=False)
        if self._ema is not None:
            self._ema.store(self._trainee.parameters)
            self._ema.copy_to(self._trainee.parameters)
        weights = weights_of(self._trainee.transformer)
        if self._ema is not None:
            self._ema.restore(self._trainee.parameters)
        settle(self._optimizer, training=True)
        return weights

    def advance(self) -> StepReport:
        """Make one step."""
        begin = time.perf_counter()
        config, world = self._config, self._world
        count = config.gradient_accumulation_steps
        total = torch.zeros((), device=self._trainee.parameters[0].device)
        for micro in range(count):
            number = self.step * count + micro
            everyone = self._sampler.batch(number)
            first = world.rank * config.train_batch_size
            mine = everyone[first : first + config.train_batch_size]
            batch = self._batches.batch(number, mine, first=first)
            with world.accumulating(self._shared, last=micro == count - 1):
                loss = loss_of(self._shared, batch, dtype=self._trainee.dtype) / count
                loss.backward()  # type: ignore[no-untyped-call]
            total += loss.detach()
        world.average_gradients(self._trainee.parameters)
        norm = self._clip()
        self._optimizer.step()
        self._schedule.step()
        self._optimizer.zero_grad(set_to_none=True)
        if self._ema is not None:
            self._ema.step(self._trainee.parameters)
        self.step += 1
        mean = float(world.mean(total))
        self._recent.append(mean)
        if len(self._recent) >= max(1, self.steps // _LOSSES):
            self._losses.append(sum(self._recent) / len(self._recent))
            self._recent.clear()
        return StepReport(
            step=self.step,
            loss=mean,
            learning_rate=float(self._schedule.get_last_lr()[0]),
            gradient_norm=float(norm),
            step_seconds=time.perf_counter() - begin,
            images=config.train_batch_size * count * world.size,
        )

    def _validates(self) -> bool:
        """Whether pictures belong to this step; those of the last one are drawn when training is over."""
        every = self._config.validation_steps
        return every > 0 and 0 < self.step < self.steps and self.step % every == 0

    def _clip(self) -> Tensor:
        most = self._config.max_grad_norm or math.inf
        return torch.nn.utils.clip_grad_norm_(self._trainee.parameters, most, foreach=True)

    def _save(self, progress: Progress) -> int:
        begin = time.perf_counter()
        state: dict[str, Any] = {
            "optimizer": self._optimizer.state_dict(),
            "schedule": self._schedule.state_dict(),
            "recent": self._recent,
        }
        if self._ema is not None:
            state["ema"] = self._ema.state_dict()
        if self._world.is_first:
            progress.flush()
            path = save_checkpoint(
                self._config.output_dir / "checkpoints",
                weights_of(self._trainee.transformer),
                state,
                step=self.step,
                decisive=self._decisive,
                dataset_hash=self._dataset_hash,
                losses=self.losses,
                keep=self._config.checkpoints_total_limit,
            )
            size = sum(file.stat().st_size for file in path.iterdir())
            progress.checkpoint(self.step, time.perf_counter() - begin, size)
        self._world.wait()
        return self.step


def _steps_matter(config: TrainConfig, steps: int) -> int | None:
    """The number of steps shapes a schedule that falls; without one, a run can be made longer."""
    return None if config.lr_scheduler.startswith("constant") else steps

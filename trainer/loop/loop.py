"""The training loop: forwards, gradients, steps, checkpoints.

Everything that follows a step is determined by the state that a checkpoint holds and by the step's number. A run that was
killed and resumed therefore ends, on a CPU, with the same bits.
"""

import math
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import torch
from diffusers import LongCatImageTransformer2DModel
from diffusers.training_utils import EMAModel
from torch import Tensor, nn
from torch.amp import GradScaler

from longcat.adapter.weights.lora import LoraWeights
from longcat.errors import ConfigError
from trainer.loop.batch_source import BatchSource
from trainer.loop.checkpoint import Origin, find_checkpoint, save_checkpoint
from trainer.loop.continuation import OTHER_DATA, other_base
from trainer.loop.distributed import ProcessGroup
from trainer.loop.evaluation.evaluations import Evaluations
from trainer.loop.interruption import Interruption
from trainer.loop.optimizer import OptimizerSettings, clip_gradients, make_optimizer, make_schedule, restore, set_mode
from trainer.loop.sampler import Sampler
from trainer.loop.step import Objective, loss_of
from trainer.model.lora import load_weights, weights_of
from trainer.record.averages import LossHistory
from trainer.record.progress import RunProgress, StepReport


@dataclass(frozen=True, kw_only=True)
class LoopSettings:
    """The options of the loop, under their names in ``TrainConfig``."""

    output_dir: Path
    train_batch_size: int
    gradient_accumulation_steps: int
    max_grad_norm: float
    grad_clip_method: Literal["norm", "value"]
    use_ema: bool
    ema_decay: float
    checkpointing_steps: int
    checkpoints_total_limit: int
    resume_from_checkpoint: str | None
    validation_steps: int


@dataclass(frozen=True, kw_only=True)
class TrainableModel:
    """The transformer with LoRA layers in it."""

    transformer: LongCatImageTransformer2DModel
    parameters: list[nn.Parameter]
    """The trainable parameters, in float32."""
    dtype: torch.dtype
    """The type of the base's computation."""


class Loop:
    """Optimizer steps up to the last one. Every process has a loop; rank 0 writes checkpoints and records."""

    def __init__(
        self,
        settings: LoopSettings,
        optimizer: OptimizerSettings,
        model: TrainableModel,
        objective: Objective[Any],
        sampler: Sampler,
        process_group: ProcessGroup,
        evaluations: Evaluations,
        *,
        steps: int,
        origin: Origin,
    ) -> None:
        """Start before the first step. ``origin`` is recorded in checkpoints, and compared with that of a resumed one."""
        self.steps = steps
        self.step = 0
        self._settings = settings
        self._model = model
        self._process_group = process_group
        self._objective = objective
        self._evaluations = evaluations
        self._origin = origin
        self._checkpoints = settings.output_dir / "checkpoints"
        self._source = BatchSource(
            objective,
            sampler,
            device=process_group.device,
            size=settings.train_batch_size,
            rank=process_group.rank,
        )
        self._replicated = process_group.replicate(model.transformer)
        self._optimizer = make_optimizer(model.parameters, optimizer)
        self._schedule = make_schedule(self._optimizer, optimizer, steps=steps)
        # Gradients of activations are float16 too, in which small ones would be zero.
        self._scaler = GradScaler(process_group.device.type, enabled=model.dtype is torch.float16)
        self._ema: EMAModel | None = None
        if settings.use_ema:
            self._ema = EMAModel(model.parameters, decay=settings.ema_decay, foreach=True)
        self._losses = LossHistory(total_steps=steps)

    @property
    def losses(self) -> tuple[float, ...]:
        """The mean losses over each hundredth of the run, oldest first."""
        return self._losses.means

    def resume(self, progress: RunProgress) -> None:
        """Load the configured checkpoint, if there is one. Raises ``ConfigError`` if it does not fit the adapter."""
        requested = self._settings.resume_from_checkpoint
        if requested is None:
            return
        checkpoint = find_checkpoint(self._checkpoints, requested)
        if checkpoint is None:
            return
        manifest = checkpoint.manifest
        if manifest.origin.base_hash != self._origin.base_hash:
            raise other_base(requested)
        if manifest.origin.dataset_hash != self._origin.dataset_hash:
            progress.warn(OTHER_DATA)
        load_weights(self._model.transformer, checkpoint.weights, field="resume_from_checkpoint", source=requested)
        restore(self._optimizer, self._schedule, checkpoint.state)
        if scale := checkpoint.state.get("scaler"):  # empty without float16, missing in an earlier version's checkpoint
            self._scaler.load_state_dict(scale)
        if self._ema is not None:
            if "ema" in checkpoint.state:
                self._ema.load_state_dict(checkpoint.state["ema"])
                self._ema.decay = self._settings.ema_decay
                self._ema.to(self._process_group.device)
            else:  # switched on now: the average begins with the checkpoint's adapter
                self._ema = EMAModel(self._model.parameters, decay=self._settings.ema_decay, foreach=True)
        self._evaluations.restore(checkpoint.state, checkpoint.best)
        self._losses.resume(manifest.losses, checkpoint.state["recent"])
        self.step = manifest.step

    def run(
        self, progress: RunProgress, interruption: Interruption, *, validate: Callable[[int, LoraWeights], object]
    ) -> bool:
        """Train to the last step or to an interruption, and save a checkpoint. Return True unless it was interrupted.

        The last step is the configured one, or an earlier one from which evaluations have not become better.

        Raises ``ConfigError`` if the loss is not finite: a restart would end in the same way.
        """
        settings, process_group = self._settings, self._process_group
        progress.phase("training")
        self._model.transformer.train()
        saved = self.step
        # A run that was killed between a checkpoint and the validation of the same step validates first.
        if self._is_validated() and process_group.any(
            process_group.is_rank_0 and not progress.has_validated(self.step)
        ):
            validate(self.step, self.result())
            progress.phase("training")
        self._evaluate(progress)
        while not self._is_over:
            report = self.advance()
            if process_group.is_rank_0:
                progress.step(report)
            if not math.isfinite(report.loss):
                raise _loss_not_finite(report, saved)
            stop = process_group.any(interruption.requested)
            if not stop:
                self._evaluate(progress)  # before the checkpoint, which keeps the result
            done = self._is_over
            if stop or done or self.step % settings.checkpointing_steps == 0:
                saved = self._save(progress)
            if stop and not done:
                return False
            if self._is_validated():
                validate(self.step, self.result())
                progress.phase("training")
                if process_group.any(interruption.requested):
                    if saved < self.step:
                        self._save(progress)
                    return False
        return True

    def result(self) -> LoraWeights:
        """Return the adapter as it is published: with ``use_ema``, its moving average."""
        with self._as_published():
            return weights_of(self._model.transformer)

    @contextmanager
    def _as_published(self) -> Iterator[None]:
        """Give the transformer the adapter that would be published."""
        set_mode(self._optimizer, training=False)
        if self._ema is not None:
            self._ema.store(self._model.parameters)
            self._ema.copy_to(self._model.parameters)
        try:
            yield
        finally:
            if self._ema is not None:
                self._ema.restore(self._model.parameters)
            set_mode(self._optimizer, training=True)

    def _evaluate(self, progress: RunProgress) -> None:
        """Evaluate the adapter on held-out pictures, if it is time."""
        if self._evaluations.is_due(self.step):
            with self._as_published():
                self._evaluations.run(self.step, weights_of(self._model.transformer))
            progress.phase("training")

    @property
    def _is_over(self) -> bool:
        return self.step >= self.steps or self._evaluations.is_over

    def advance(self) -> StepReport:
        """Make one optimizer step."""
        begin = time.perf_counter()
        process_group, batch_size = self._process_group, self._settings.train_batch_size
        count = self._settings.gradient_accumulation_steps
        total = torch.zeros((), device=self._model.parameters[0].device)
        for micro in range(count):
            batch = self._objective.complete(self._model.transformer, self._source.batch(self.step * count + micro))
            with process_group.accumulating(self._replicated, last=micro == count - 1):
                loss = loss_of(self._replicated, batch) / count
                self._scaler.scale(loss).backward()
            total += loss.detach()
        process_group.average_gradients(self._model.parameters)
        norm = self._clip()
        self._scaler.step(self._optimizer)  # which leaves a step out whose gradients are not finite, and scales by less
        self._scaler.update()
        self._schedule.step()
        self._optimizer.zero_grad(set_to_none=True)
        if self._ema is not None:
            self._ema.step(self._model.parameters)
        self.step += 1
        loss_mean, norm_mean = torch.stack(
            (process_group.mean(total), norm)
        ).tolist()  # the step's one wait for the device
        self._losses.add(loss_mean)
        return StepReport(
            step=self.step,
            loss=loss_mean,
            learning_rate=float(self._schedule.get_last_lr()[0]),
            gradient_norm=norm_mean if math.isfinite(norm_mean) else 0.0,
            step_seconds=time.perf_counter() - begin,
            images=batch_size * count * process_group.size,
        )

    def _is_validated(self) -> bool:
        """Return True if the loop validates after this step. The last step is validated after the loop."""
        every = self._settings.validation_steps
        return every > 0 and self.step > 0 and not self._is_over and self.step % every == 0

    def _clip(self) -> Tensor:
        self._scaler.unscale_(self._optimizer)
        limit = self._settings.max_grad_norm or math.inf
        return clip_gradients(self._model.parameters, limit, self._settings.grad_clip_method)

    def _save(self, progress: RunProgress) -> int:
        """Save a checkpoint; return its step."""
        begin = time.perf_counter()
        state: dict[str, Any] = {
            "optimizer": self._optimizer.state_dict(),
            "schedule": self._schedule.state_dict(),
            "scaler": self._scaler.state_dict(),
            "recent": self._losses.recent,
            **self._evaluations.state(),
        }
        if self._ema is not None:
            state["ema"] = self._ema.state_dict()
        if self._process_group.is_rank_0:
            progress.flush()
            path = save_checkpoint(
                self._checkpoints,
                weights_of(self._model.transformer),
                state,
                best=self._evaluations.best,
                step=self.step,
                origin=self._origin,
                losses=self.losses,
                keep=self._settings.checkpoints_total_limit,
            )
            size = sum(file.stat().st_size for file in path.iterdir())
            progress.checkpoint(self.step, time.perf_counter() - begin, size)
        self._process_group.barrier()
        return self.step


def _loss_not_finite(report: StepReport, saved: int) -> ConfigError:
    return ConfigError(
        "loss_not_finite",
        "the loss is {loss} at step {step}",
        remedy="lower learning_rate, or set mixed_precision to bf16 or no; the last good checkpoint is of step {saved}",
        loss=f"{report.loss}",
        step=report.step,
        saved=saved,
    )

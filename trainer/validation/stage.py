"""Validation as a stage of a training: in every process, recorded, and interruptible."""

from collections.abc import Callable, Sequence
from contextlib import suppress
from pathlib import Path

from diffusers import LongCatImageTransformer2DModel

from longcat.adapter.weights.lora import LoraWeights
from trainer.loop.distributed import ProcessGroup
from trainer.loop.interruption import InterruptedTraining, Interruption
from trainer.record.progress import RunProgress
from trainer.validation.prompts import ValidationPrompt
from trainer.validation.validation import OnStep, Validation, ValidationResult


class ValidationStage:
    """Validation by rank 0, while the other processes gather the base with it and wait."""

    def __init__(
        self,
        make: Callable[[OnStep], Validation] | None,
        transformer: LongCatImageTransformer2DModel,
        process_group: ProcessGroup,
        interruption: Interruption,
        progress: RunProgress,
        *,
        output_dir: Path,
        prompts: Callable[[], Sequence[ValidationPrompt]],
    ) -> None:
        """Call ``make`` in rank 0; None if there are no validation prompts. Call ``prompts`` before each validation."""
        self._is_enabled = make is not None
        self._transformer = transformer
        self._process_group = process_group
        self._interruption = interruption
        self._progress = progress
        self._output_dir = output_dir
        self._prompts = prompts
        self._validation = make(self._on_step) if make is not None and process_group.is_rank_0 else None

    def run(self, step: int, weights: LoraWeights) -> ValidationResult | None:
        """Validate and record the result. Return None in other processes, without prompts, and when interrupted."""
        if not self._is_enabled:
            return None
        result = None
        with self._process_group.unsharded(self._transformer):
            # After an interruption, the loop saves and stops, together with the other processes.
            with suppress(InterruptedTraining):
                result = self._run(step, weights)
            self._process_group.barrier()
        return result

    def _run(self, step: int, weights: LoraWeights) -> ValidationResult | None:
        if self._validation is None:
            return None
        self._progress.phase("validating")
        self._validation.use(self._prompts())
        result = self._validation.run(weights, step=step)
        images = [str(path.relative_to(self._output_dir)) for path in result.files]
        self._progress.validation(
            step,
            images,
            result.problems,
            change=result.change,
            drift=result.drift if result.has_base_prompts else None,
            nearest=result.nearest,
        )
        return result

    def _on_step(self, done: int, total: int, picture: str) -> None:
        self._interruption.check()
        self._progress.denoising(done, total, picture)

"""Validation of an adapter: prompts sampled with the base and with the adapter, by the code that serves.

The pictures are those that the service returns for the same request, on a CPU pixel for pixel: same schedule, seed,
embeddings and adapter slots (``longcat.sampling.denoise``).
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from diffusers import AutoencoderKL, LongCatImageTransformer2DModel

from longcat.adapter.weights.lora import LoraWeights
from longcat.errors import EngineError
from longcat.problem import Problem
from longcat.sampling import denoise
from longcat.sampling.encoding.files import prompt_rows
from longcat.sampling.forward import Forward
from longcat.sampling.slots import AdapterSlots, SlotUse
from trainer.data.pictures import read_reference
from trainer.data.sample import PairReference
from trainer.encode.cache import Cache
from trainer.encode.preparation import Encoders
from trainer.model.base import without_adapter
from trainer.record.report_card import NearestRecord
from trainer.validation.nearest import Nearest, NearestPictures
from trainer.validation.pictures import ValidationFolder, read_picture, write_picture
from trainer.validation.prompts import ValidationPrompt

OnStep = Callable[[int, int, str], None]
"""Called before each denoising step and after the last: steps done, of how many, and the picture under way."""


@dataclass(frozen=True, kw_only=True)
class ValidationSettings:
    """The options of a validation, under their names in ``TrainConfig``."""

    output_dir: Path
    validation_min_change: float
    validation_max_drift: float


@dataclass(frozen=True, kw_only=True)
class ValidationResult:
    """The pictures of an adapter and how they compare with the base's."""

    step: int
    files: tuple[Path, ...]
    """One picture per prompt, in their order."""
    change: float
    """Mean difference of pixels, 0..1, to the base's pictures of the training's own prompts."""
    drift: float
    """Mean difference of pixels, 0..1, for the base prompts; 0 if there are none."""
    problems: tuple[Problem, ...]
    """Reasons for not passing; empty if the adapter passed."""
    has_base_prompts: bool = False
    """True if there are prompts that have nothing to do with the training."""
    nearest: tuple[NearestRecord, ...] = ()
    """The training picture that each picture is nearest to."""

    @property
    def passed(self) -> bool:
        """True if the adapter may become the latest version."""
        return not self.problems


class Validation:
    """A sampler of validation prompts: with the base once, with the adapter in every validation."""

    def __init__(
        self,
        settings: ValidationSettings,
        transformer: LongCatImageTransformer2DModel,
        encoders: Encoders,
        cache: Cache,
        prompts: Sequence[ValidationPrompt],
        *,
        scheduler_config: Mapping[str, Any],
        load_vae: Callable[[], AutoencoderKL],
        on_step: OnStep,
        rank: int,
        training: NearestPictures | None = None,
    ) -> None:
        """Add a slot for an adapter to a transformer without LoRA layers. ``on_step`` may raise to stop a validation.

        Copies are looked for among the pictures of ``training``.
        """
        self.scheduler_config = scheduler_config
        self.device, self.dtype = encoders.device, encoders.dtype
        self.folder = ValidationFolder(settings.output_dir)
        self._prompts = prompts
        self._settings = settings
        self._transformer = transformer
        self._encoders = encoders
        self._cache = cache
        self._load_vae = load_vae
        self._on_step = on_step
        self._training = training
        self._steps_done = self._steps_total = 0
        self._slots = AdapterSlots(transformer, count=1, rank=rank, device=self.device, dtype=self.dtype)

    def use(self, prompts: Sequence[ValidationPrompt]) -> None:
        """Sample these prompts from the next validation on; their embeddings are in the cache."""
        self._prompts = prompts

    def run(self, weights: LoraWeights, *, step: int) -> ValidationResult:
        """Sample every prompt, write the pictures and the grid, and compare them with the base's."""
        self._count_steps(*self._prompts)
        self._slots.load(0, weights)
        differences: dict[bool, list[float]] = {False: [], True: []}
        problems: list[Problem] = []
        files: list[Path] = []
        nearest: list[NearestRecord] = []
        with torch.no_grad(), without_adapter(self._transformer):
            vae = self._load_vae()
            forward = Forward(self._transformer, self.device)
            for prompt in self._prompts:
                self._show_source(prompt)
                base = self._base(prompt, forward, vae)
                try:
                    pixels = self._sample(prompt, forward, vae, ((0, 1.0),))
                except EngineError as error:
                    problems.append(_not_generated(prompt, error))
                    continue
                files.append(write_picture(self.folder.at_step(prompt, step), pixels, prompt, step))
                differences[prompt.is_base].append(_difference(base, pixels))
                if self._training is not None:
                    nearest.append(self._nearest(self._training.of(pixels), files[-1]))
                if pixels.std() < 1 < base.std():
                    problems.append(_of_one_colour(prompt))
        change, drift = (float(np.mean(differences[kind])) if differences[kind] else 0.0 for kind in (False, True))
        problems += self._compare(change, drift)
        self.folder.write_grid(self._prompts)
        return ValidationResult(
            step=step,
            files=tuple(files),
            change=change,
            drift=drift,
            problems=tuple(problems),
            has_base_prompts=bool(differences[True]),
            nearest=tuple(nearest),
        )

    def sample_base(self) -> tuple[Path, ...]:
        """Sample every prompt with the base alone; return the pictures."""
        self._count_steps()
        with torch.no_grad(), without_adapter(self._transformer):
            vae, forward = self._load_vae(), Forward(self._transformer, self.device)
            for prompt in self._prompts:
                self._base(prompt, forward, vae)
        return tuple(map(self.folder.base, self._prompts))

    def _compare(self, change: float, drift: float) -> Iterator[Problem]:
        settings = self._settings
        if change < settings.validation_min_change:
            yield Problem(
                code="validation_change_too_small",
                template="the adapter changes pictures of its own prompts by {change}, less than validation_min_change "
                "{least}",
                remedy_template="train longer or with a larger learning_rate",
                details={"change": f"{change:.4f}", "least": f"{settings.validation_min_change:g}"},
            )
        if drift > settings.validation_max_drift:
            yield Problem(
                code="validation_drift_too_large",
                template="the adapter changes pictures of other prompts by {drift}, more than validation_max_drift {most}",
                remedy_template="train for fewer steps or with a smaller learning_rate",
                details={"drift": f"{drift:.4f}", "most": f"{settings.validation_max_drift:g}"},
            )

    def _nearest(self, found: Nearest, file: Path) -> NearestRecord:
        return NearestRecord(
            image=str(file.relative_to(self._settings.output_dir)),
            picture=f"{found.sample.dataset}/{found.sample.key}",
            distance=found.distance,
            share=found.share,
            is_copy=found.is_copy,
        )

    def _count_steps(self, *with_adapter: ValidationPrompt) -> None:
        """Count the denoising steps to come: with the base, only of pictures that do not exist yet."""
        missing = [prompt for prompt in self._prompts if not self.folder.base(prompt).exists()]
        self._steps_done, self._steps_total = 0, sum(prompt.steps for prompt in (*missing, *with_adapter))

    def _base(self, prompt: ValidationPrompt, forward: Forward, vae: AutoencoderKL) -> np.ndarray:
        """Return the base's picture; sample it if it does not exist yet."""
        path = self.folder.base(prompt)
        if path.exists():
            return read_picture(path)
        pixels = self._sample(prompt, forward, vae, ())
        write_picture(path, pixels, prompt, 0)
        return pixels

    def _sample(
        self, prompt: ValidationPrompt, forward: Forward, vae: AutoencoderKL, uses: tuple[SlotUse, ...]
    ) -> np.ndarray:
        denoising = denoise.start(
            self,
            forward,
            embeds_1LJ=self._embedding(prompt.prompt, prompt.reference),
            negative_embeds_1LJ=self._embedding(prompt.negative_prompt, prompt.reference)
            if prompt.guidance_scale > 1
            else None,
            height_px=prompt.height_px,
            width_px=prompt.width_px,
            steps=prompt.steps,
            guidance_scale=prompt.guidance_scale,
            cfg_renorm=self._encoders.flavour.settings.default_cfg_renorm,
            seed=prompt.seed,
            adapters=uses,
            slots=self._slots,
            reference_1NC=self._latents(prompt.reference),
        )
        picture = f"{'with the adapter' if uses else 'the base'}, {prompt.width_px}x{prompt.height_px}"
        self._on_step(self._steps_done, self._steps_total, picture)
        while not denoising.is_done:
            denoise.advance(forward, [denoising], self._slots)
            self._steps_done += 1
            self._on_step(self._steps_done, self._steps_total, picture)
        return denoise.decode(vae, denoising)

    def _embedding(self, text: str, reference: PairReference | None) -> torch.Tensor:
        rows = self._cache.read(self._encoders.embedding_key(text, reference))
        assert rows is not None, "prompts are embedded before the text encoder is unloaded"
        return prompt_rows(rows, self._encoders.prompt_length(reference))[None].to(self.device)

    def _latents(self, reference: PairReference | None) -> torch.Tensor | None:
        """Return the latents of the picture that is edited, (1, N, C)."""
        if reference is None:
            return None
        return self._cache.require(self._encoders.reference_key(reference), reference.file.key)[None].to(self.device)

    def _show_source(self, prompt: ValidationPrompt) -> None:
        """Write the picture that a prompt edits beside its edits."""
        path = self.folder.source(prompt)
        if prompt.reference is not None and not path.exists():
            write_picture(path, read_reference(prompt.reference).pixel_array, prompt, 0)


def _difference(a: np.ndarray, b: np.ndarray) -> float:
    return float(np.abs(a.astype(np.float32) - b.astype(np.float32)).mean() / 255)


def _not_generated(prompt: ValidationPrompt, error: EngineError) -> Problem:
    return Problem(
        code="validation_picture_failed",
        template="the adapter generated no picture: {cause}",
        field="validation prompt",
        value=prompt.prompt,
        details={"cause": error.problems[0]},
    )


def _of_one_colour(prompt: ValidationPrompt) -> Problem:
    return Problem(
        code="validation_picture_of_one_colour",
        template="the adapter's picture is of one colour, the base's is not",
        remedy_template="lower learning_rate",
        field="validation prompt",
        value=prompt.prompt,
    )

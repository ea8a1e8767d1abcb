"""What an adapter has learnt, to look at: prompts drawn with the base and with the adapter, by the code that serves.

The pictures are those that the service returns for the same request, on a CPU pixel for pixel: same schedule, seed,
embeddings and adapter slots (``longcat.denoise``).
"""

import hashlib
import io
import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from diffusers import AutoencoderKL, LongCatImageTransformer2DModel
from PIL import Image, PngImagePlugin

from longcat import denoise
from longcat.errors import EngineError
from longcat.forward import Forward
from longcat.lora import LoraWeights
from longcat.slots import AdapterSlots, SlotUse
from trainer.atomic import write_atomically
from trainer.cache import Cache
from trainer.captions import detect_language
from trainer.config import TrainConfig
from trainer.config_file import read_prompts
from trainer.dataset_config import width_and_height
from trainer.inventory import Sample
from trainer.preparation import Encoders, prompt_rows

_PROMPTS = ("一个红苹果", "a red apple")
"""Drawn where there are neither prompts nor captions."""

OnStep = Callable[[int, int, str], None]
"""Hears, before each step and after the last, how many of all pictures' steps are made, of how many, and what is drawn."""


@dataclass(frozen=True, kw_only=True)
class Scene:
    """One picture that is drawn again and again while training goes on."""

    prompt: str
    negative_prompt: str
    width_px: int
    height_px: int
    steps: int
    guidance_scale: float
    seed: int
    model: str
    """Whose weights at which precision: another model's base is no base to compare with."""
    is_base: bool
    """Whether it has nothing to do with the training and is there to see what broke."""

    @property
    def name(self) -> str:
        """A file name that follows from what is drawn."""
        digest = hashlib.sha256(json.dumps(asdict(self), ensure_ascii=False).encode()).hexdigest()[:10]
        return f"{self.width_px}x{self.height_px}-{digest}.png"


@dataclass(frozen=True, kw_only=True)
class Verdict:
    """What the pictures say of an adapter."""

    step: int
    files: tuple[Path, ...]
    """One a scene, in their order."""
    change: float
    """Mean difference of pixels, 0..1, to the base's pictures of the training's own prompts."""
    drift: float
    """Likewise of the base prompts; 0 if there are none."""
    reasons: tuple[str, ...]
    """Why it did not pass; empty if it did."""

    @property
    def passed(self) -> bool:
        """Whether the adapter may become the latest."""
        return not self.reasons


def scenes(config: TrainConfig, encoders: Encoders, samples: Sequence[Sample]) -> tuple[Scene, ...]:
    """What is to be drawn. Without prompts, one caption of each language that the data has."""
    if config.validation_disable:
        return ()
    settings = encoders.flavour.settings
    prompts = [config.validation_prompt] if config.validation_prompt else []
    prompts += config.validation_prompts
    if config.user_prompt_library is not None:
        prompts += read_prompts(config.user_prompt_library)
    if not prompts:
        captions = [sample.captions[0] for sample in samples]
        found = {detect_language(caption): caption for caption in reversed(captions)}
        prompts = [found[language] for language in ("zh", "en", "other") if language in found][:2] or list(_PROMPTS)
    side = settings.default_size_px
    sizes = [width_and_height(size) for size in config.validation_resolution] or [(side, side)]
    guidance = config.validation_guidance
    precisions = config.precision, encoders.text_encoder_precision, encoders.dtype
    model = ", ".join(map(str, (encoders.flavour.hash, *precisions)))
    return tuple(
        Scene(
            prompt=prompt,
            negative_prompt=config.validation_negative_prompt,
            width_px=width,
            height_px=height,
            steps=config.validation_num_inference_steps or settings.default_steps,
            guidance_scale=settings.default_guidance_scale if guidance is None else guidance,
            seed=config.validation_seed,
            model=model,
            is_base=is_base,
        )
        for is_base, several in ((False, prompts), (True, config.validation_base_prompts))
        for prompt in several
        for width, height in sizes
    )


def language_warning(prompts: Sequence[str]) -> str | None:
    """The model is bilingual: prompts of one language do not show what the other one lost."""
    languages = {detect_language(prompt) for prompt in prompts}
    if not languages or {"zh", "en"} <= languages:
        return None
    missing = "Chinese" if "zh" not in languages else "English"
    return f"validation prompts: none is in {missing}; the model is bilingual, add one to see that it still is"


class Validation:
    """Draws the scenes: with the base once, with the adapter whenever asked."""

    def __init__(
        self,
        config: TrainConfig,
        transformer: LongCatImageTransformer2DModel,
        encoders: Encoders,
        cache: Cache,
        drawn: Sequence[Scene],
        *,
        scheduler_config: Mapping[str, Any],
        load_vae: Callable[[], AutoencoderKL],
        on_step: OnStep,
        rank: int,
    ) -> None:
        """``transformer``: still without LoRA layers, whose names the slots go by. ``on_step`` may raise to stop."""
        self.scenes = drawn
        self.scheduler_config = scheduler_config
        self.device, self.dtype = encoders.device, encoders.dtype
        self.folder = config.output_dir / "validation"
        self._config = config
        self._transformer = transformer
        self._encoders = encoders
        self._cache = cache
        self._load_vae = load_vae
        self._on_step = on_step
        self._made = self._wanted = 0
        self._slots = AdapterSlots(transformer, count=1, rank=rank, device=self.device, dtype=self.dtype)

    def run(self, weights: LoraWeights, *, step: int) -> Verdict:
        """Draw every scene, write the pictures and the grid of prompt by step, and judge."""
        folder = self.folder / f"step-{step:08d}"
        self._begin(*self.scenes)
        self._slots.load(0, weights)
        changes: dict[bool, list[float]] = {False: [], True: []}
        reasons: list[str] = []
        files: list[Path] = []
        with torch.no_grad(), without_adapter(self._transformer):
            vae = self._load_vae()
            forward = Forward(self._transformer)
            for scene in self.scenes:
                base = self._base(scene, forward, vae)
                try:
                    drawn = self._draw(scene, forward, vae, ((0, 1.0),))
                except EngineError as error:
                    reasons.append(f"{scene.prompt!r}: {error}")
                    continue
                files.append(_write(folder / scene.name, drawn, scene, step))
                changes[scene.is_base].append(_difference(base, drawn))
                if drawn.std() < 1 < base.std():
                    reasons.append(f"{scene.prompt!r}: the picture is of one colour, the base's is not")
        change, drift = (float(np.mean(changes[kind])) if changes[kind] else 0.0 for kind in (False, True))
        if change < self._config.validation_min_change:
            reasons.append(
                f"the adapter changes its prompts' pictures by {change:.4f}, less than validation_min_change "
                f"{self._config.validation_min_change:g}: train longer or with a larger learning_rate"
            )
        if drift > self._config.validation_max_drift:
            reasons.append(
                f"the adapter changes pictures of other prompts by {drift:.4f}, more than validation_max_drift "
                f"{self._config.validation_max_drift:g}: train shorter or with a smaller learning_rate"
            )
        self.write_grid()
        return Verdict(step=step, files=tuple(files), change=change, drift=drift, reasons=tuple(reasons))

    def draw_base(self) -> tuple[Path, ...]:
        """Draw every scene with the base alone."""
        self._begin()
        with torch.no_grad(), without_adapter(self._transformer):
            vae, forward = self._load_vae(), Forward(self._transformer)
            for scene in self.scenes:
                self._base(scene, forward, vae)
        return tuple(map(self._base_path, self.scenes))

    def write_grid(self) -> None:
        """``grid.png``: a row for each scene, a column for the base and for each step that has been drawn."""
        steps = sorted(path for path in self.folder.glob("step-*") if path.is_dir())
        columns = [self.folder / "base", *steps]
        side = 192
        grid = Image.new("RGB", (side * len(columns), side * max(1, len(self.scenes))), "white")
        for row, scene in enumerate(self.scenes):
            for column, folder in enumerate(columns):
                if (folder / scene.name).exists():
                    with Image.open(folder / scene.name) as picture:
                        picture.thumbnail((side - 4, side - 4))
                        grid.paste(picture.convert("RGB"), (column * side + 2, row * side + 2))
        write_atomically(self.folder / "grid.png", _encoded(grid, {}))

    def _begin(self, *with_adapter: Scene) -> None:
        """Count the steps that are to be made: of the base's pictures, those that are not there yet."""
        missing = [scene for scene in self.scenes if not self._base_path(scene).exists()]
        self._made, self._wanted = 0, sum(scene.steps for scene in (*missing, *with_adapter))

    def _base_path(self, scene: Scene) -> Path:
        return self.folder / "base" / scene.name

    def _base(self, scene: Scene, forward: Forward, vae: AutoencoderKL) -> np.ndarray:
        path = self._base_path(scene)
        if path.exists():
            with Image.open(path) as picture:
                return np.asarray(picture.convert("RGB"))
        drawn = self._draw(scene, forward, vae, ())
        _write(path, drawn, scene, 0)
        return drawn

    def _draw(self, scene: Scene, forward: Forward, vae: AutoencoderKL, uses: tuple[SlotUse, ...]) -> np.ndarray:
        picture = denoise.start(
            self,
            forward,
            embeds_1LJ=self._embedding(scene.prompt),
            negative_embeds_1LJ=self._embedding(scene.negative_prompt) if scene.guidance_scale > 1 else None,
            height_px=scene.height_px,
            width_px=scene.width_px,
            steps=scene.steps,
            guidance_scale=scene.guidance_scale,
            cfg_renorm=True,
            seed=scene.seed,
        )
        picture.adapters = uses
        what = f"{'with the adapter' if uses else 'the base'}, {scene.width_px}x{scene.height_px}"
        self._on_step(self._made, self._wanted, what)
        while not picture.is_done:
            denoise.advance(forward, [picture], self._slots)
            self._made += 1
            self._on_step(self._made, self._wanted, what)
        return denoise.decode(vae, picture)

    def _embedding(self, prompt: str) -> torch.Tensor:
        rows = self._cache.read(self._encoders.embedding_key(prompt))
        assert rows is not None, "prompts are embedded before the text encoder goes"
        return prompt_rows(rows, self._encoders.flavour.settings.max_prompt_tokens)[None].to(self.device)


def prompts_of(drawn: Sequence[Scene]) -> list[str]:
    """Everything whose embedding the scenes need."""
    return list(dict.fromkeys(text for scene in drawn for text in (scene.prompt, scene.negative_prompt)))


@contextmanager
def without_adapter(transformer: LongCatImageTransformer2DModel) -> Iterator[None]:
    """The base alone, as it computes where nothing was injected; in evaluation mode."""
    has_adapter = hasattr(transformer, "peft_config")
    was_training = transformer.training
    transformer.eval()
    if has_adapter:
        transformer.disable_adapters()
    try:
        yield
    finally:
        if has_adapter:
            transformer.enable_adapters()
        transformer.train(was_training)


def _difference(a: np.ndarray, b: np.ndarray) -> float:
    return float(np.abs(a.astype(np.float32) - b.astype(np.float32)).mean() / 255)


def _write(path: Path, pixels: np.ndarray, scene: Scene, step: int) -> Path:
    write_atomically(path, _encoded(Image.fromarray(pixels), asdict(scene) | {"step": step}))
    return path


def _encoded(image: Image.Image, said: Mapping[str, Any]) -> bytes:
    chunks = PngImagePlugin.PngInfo()
    if said:
        chunks.add_itxt("lithograph-validation", json.dumps(said, ensure_ascii=False))
    buffer = io.BytesIO()
    image.save(buffer, "PNG", pnginfo=chunks)
    return buffer.getvalue()

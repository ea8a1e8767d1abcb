"""A loaded model that turns resolved requests into picture files. The service and the command line share it."""

import time

from longcat.flavour import Flavour
from longcat.loading import load
from longcat.precision import Offload, parse_precision
from service.config import ModelConfig
from service.engine import Engine, OnStep, Order
from service.picture import ModelIdentity, Recipe, Rendered, encode_picture
from service.schema import ResolvedRequest, Timings


class Renderer:
    """Draws requests and writes them as files that carry their recipe."""

    def __init__(self, config: ModelConfig, flavour: Flavour, *, max_rows: int) -> None:
        """Load the model. Raises ``DeviceError`` or ``PrecisionError`` if this machine cannot."""
        self.model = load(
            flavour,
            precision=parse_precision(config.precision),
            text_encoder_precision=parse_precision(config.text_encoder_precision),
            device=config.device,
            dtype=config.dtype,
            offload=Offload(config.offload),
        )
        self.identity = ModelIdentity(
            flavour=flavour.name,
            revision=flavour.revision,
            hash=flavour.hash,
            precision=self.model.precision.value,
            text_encoder_precision=self.model.text_encoder_precision.value,
            dtype=str(self.model.dtype).removeprefix("torch."),
        )
        self._engine = Engine(self.model, max_rows=max_rows)

    def render(self, request: ResolvedRequest, on_step: OnStep | None = None) -> Rendered:
        """Draw and encode every picture of a request."""
        drawn = self._engine.draw(
            Order(
                prompt=request.prompt,
                negative_prompt=request.negative_prompt,
                width_px=request.width,
                height_px=request.height,
                steps=request.steps,
                guidance_scale=request.guidance_scale,
                cfg_renorm=request.cfg_renorm,
                rewrite_prompt=request.rewrite_prompt,
                seeds=tuple(request.seed + i for i in range(request.num_images)),
            ),
            on_step,
        )
        begin = time.monotonic()
        files = tuple(
            encode_picture(pixels, Recipe.of_image(request, i, self.identity))
            for i, pixels in enumerate(drawn.pictures)
        )
        timings = Timings(
            text_seconds=drawn.text_seconds,
            denoise_seconds=drawn.denoise_seconds,
            decode_seconds=drawn.decode_seconds,
            encode_seconds=time.monotonic() - begin,
        )
        return Rendered(files=files, prompt=drawn.prompt, timings=timings)

"""The limits of a request to this model on this server, and the defaults of the fields that it leaves out. No torch."""

import dataclasses
import math
import secrets
import sys
from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import Self

from longcat.adapter.reference import parse_reference
from longcat.errors import AdapterError, PromptTooLongError, UserError
from longcat.model.flavour import Flavour
from longcat.model.published.models import ModelSettings
from longcat.model.shape import GRID_PX
from longcat.problem import Problem
from longcat.sampling.encoding.picture_file import MAX_PIXELS
from longcat.sampling.encoding.source_picture import SourcePicture
from longcat.sampling.prompt import Tokenize, tokenize_prompt
from longcat.sampling.quality import Size, Tolerances, sizes_of, tolerances_of
from service.wire.editing.fields import Expansion
from service.wire.editing.reading import PictureLimits, ReadPictures, read_pictures
from service.wire.provenance.parent import parent_of
from service.wire.schema import LARGEST_SEED, GenerateRequest, ResolvedRequest
from service.wire.webhook_host import WebhookHost, may_call

_LARGEST_FILE_BYTES = 256 * 2**20
"""Largest picture and mask, together, of local use."""


@dataclass(frozen=True, kw_only=True)
class Limits:
    """The limits of one request to this model on this server."""

    settings: ModelSettings
    tolerances: Tolerances
    sizes: tuple[Size, ...] | None
    """Those at which the model was measured to draw well; None where nothing was measured. Others are drawn, too."""
    max_pixels: int
    """Largest width times height."""
    max_steps: int
    max_images: int
    """Most images of one request."""
    has_adapters: bool
    """True if adapter storage is configured."""
    webhook_hosts: tuple[str, ...] = ()
    """Hosts that a webhook may call, in the forms of ``WebhookHost``."""
    max_timeout_seconds: float = math.inf
    pictures: PictureLimits = dataclasses.field(default_factory=PictureLimits)
    """Of the pictures that a request gives."""
    keeps_manifests: bool = False
    """True if files are signed, so that the C2PA manifest of a picture that is changed is kept for them."""

    @classmethod
    def of_model(cls, flavour: Flavour, *, has_adapters: bool = False, keeps_manifests: bool = False) -> Self:
        """Return the model's own limits only, for local use."""
        return cls(
            settings=flavour.settings,
            tolerances=tolerances_of(flavour.folder),
            sizes=sizes_of(flavour.folder),
            max_pixels=flavour.settings.max_pixels,
            max_steps=sys.maxsize,
            max_images=sys.maxsize,
            has_adapters=has_adapters,
            pictures=PictureLimits(max_image_bytes=_LARGEST_FILE_BYTES, max_image_pixels=MAX_PIXELS),
            keeps_manifests=keeps_manifests,
        )

    def resolve_with_picture(
        self, request: GenerateRequest, tokenize: Tokenize
    ) -> tuple[ResolvedRequest, SourcePicture | None]:
        """Read the request's pictures, then resolve it; return the picture that its images start from, if there is one."""
        pictures = read_pictures(request, self.pictures)
        resolved = self.resolve(request, tokenize, pictures)
        if pictures is None or (edit := resolved.edit) is None:
            return resolved, None
        picture = pictures.at(width_px=resolved.width, height_px=resolved.height, edit=edit)
        if self.keeps_manifests and request.image is not None:
            picture = replace(picture, manifest=parent_of(request.image, sha256=edit.image_sha256))
        return resolved, picture

    def resolve(
        self, request: GenerateRequest, tokenize: Tokenize, pictures: ReadPictures | None = None
    ) -> ResolvedRequest:
        """Fill in the model's defaults and check the limits. Raises ``UserError`` with every problem.

        ``pictures``: those of the request, which decide the size that it leaves out.
        """
        width, height = self._default_size(request, pictures)
        resolved = ResolvedRequest(
            prompt=request.prompt,
            negative_prompt=request.negative_prompt,
            width=width if request.width is None else request.width,
            height=height if request.height is None else request.height,
            steps=min(self.settings.default_steps, self.max_steps) if request.steps is None else request.steps,
            guidance_scale=(
                self.settings.default_guidance_scale if request.guidance_scale is None else request.guidance_scale
            ),
            seed=secrets.randbelow(2**32) if request.seed is None else request.seed,
            num_images=request.num_images,
            cfg_renorm=self.settings.default_cfg_renorm if request.cfg_renorm is None else request.cfg_renorm,
            rewrite_prompt=request.rewrite_prompt,
            quality=request.quality or ("exact" if request.reuse_tolerance is None else None),
            reuse_tolerance=self._tolerance(request),
            output_format=request.output_format,
            adapters=request.adapters,
            edit=None if pictures is None else pictures.resolved(request, is_reference=self.settings.edits),
        )
        problems = [
            *self._reference_problems(request), *self._size_problems(resolved), *_expand_problems(resolved),
            *self._count_problems(resolved), *self._time_problems(request),
            *self._adapter_problems(resolved), *self._delivery_problems(request),
            *self._prompt_problems(resolved, tokenize),
        ]  # fmt: skip
        if problems:
            raise UserError.of(problems)
        return resolved

    def _default_size(self, request: GenerateRequest, pictures: ReadPictures | None) -> tuple[int, int]:
        """Return the width and height of a request that leaves them out: the picture's, and what it is expanded by."""
        size = self.settings.default_size_px
        if pictures is None:
            return size, size
        left, top, right, bottom = (request.expand or Expansion()).margins
        if self.settings.edits and (request.width is None or request.height is None):
            width, height = pictures.canvas(area_px=size**2, max_pixels=self.max_pixels)
        else:
            width, height = pictures.size(default_px=size, max_pixels=self.max_pixels)
        return width + left + right, height + top + bottom

    def _tolerance(self, request: GenerateRequest) -> float:
        if request.reuse_tolerance is not None:
            return request.reuse_tolerance
        return self.tolerances.of(request.quality or "exact")

    def _reference_problems(self, request: GenerateRequest) -> Iterator[Problem]:
        if self.settings.edits and request.image is None:
            yield Problem(
                code="reference_missing",
                template="this model edits a picture, and there is none",
                remedy_template="give the picture as image, or serve flavour final, which needs none",
                field="image",
            )

    def _size_problems(self, request: ResolvedRequest) -> Iterator[Problem]:
        pixels = request.width * request.height
        if pixels > self.max_pixels:
            field = "width" if request.width >= request.height else "height"
            side = math.isqrt(self.max_pixels) // GRID_PX * GRID_PX
            yield Problem(
                code="too_many_pixels",
                template="{width} x {height} is {pixels} pixels, more than the {max_pixels} that are served",
                remedy_template="give at most {side} x {side}",
                field=field,
                value=getattr(request, field),
                details={
                    "width": request.width, "height": request.height, "pixels": pixels, "max_pixels": self.max_pixels,
                    "side": side,
                },
            )  # fmt: skip

    def _count_problems(self, request: ResolvedRequest) -> Iterator[Problem]:
        for field, limit in (("steps", self.max_steps), ("num_images", self.max_images)):
            if (value := getattr(request, field)) > limit:
                yield _above(limit, field=field, value=value)
        if request.seed + request.num_images - 1 > LARGEST_SEED:
            yield Problem(
                code="seed_too_large",
                template="seed + num_images exceeds 63 bits",
                remedy_template="give a smaller seed",
                field="seed",
                value=request.seed,
            )

    def _time_problems(self, request: GenerateRequest) -> Iterator[Problem]:
        if (seconds := request.timeout_seconds) is not None and seconds > self.max_timeout_seconds:
            yield _above(self.max_timeout_seconds, field="timeout_seconds", value=seconds)

    def _adapter_problems(self, request: ResolvedRequest) -> Iterator[Problem]:
        if request.adapters and not self.has_adapters:
            yield Problem(
                code="no_adapter_storage",
                template="no adapter storage is configured",
                remedy_template="start the server with --adapters",
                field="adapters",
                value=request.adapters[0].name,
            )
            return
        names: set[str] = set()
        for i, choice in enumerate(request.adapters):
            field = f"adapters.{i}.name"
            try:
                name = parse_reference(choice.name).name
            except AdapterError as error:
                yield from (replace(problem, field=field, value=choice.name) for problem in error.problems)
                continue
            if name in names:
                yield Problem(
                    code="adapter_named_twice",
                    template="adapter {name} is named twice",
                    remedy_template="name it once",
                    field=field,
                    value=choice.name,
                    details={"name": name},
                )
            names.add(name)

    def _delivery_problems(self, request: GenerateRequest) -> Iterator[Problem]:
        if request.as_job and request.stream:
            yield Problem(
                code="job_with_stream",
                template="a job has no stream",
                remedy_template="leave out stream or async",
                field="stream",
                value=True,
            )
        if (url := request.webhook_url) is None:
            return
        if not request.as_job:
            yield Problem(
                code="webhook_without_job",
                template="a webhook announces the end of a job",
                remedy_template='add "async": true',
                field="webhook_url",
                value=url,
            )
        if not self.webhook_hosts:
            yield Problem(
                code="webhooks_not_configured",
                template="this server calls no webhooks",
                remedy_template="leave it out, or start with --webhook-secret-file and --webhook-host",
                field="webhook_url",
                value=url,
            )
        elif not may_call(url, map(WebhookHost.parse, self.webhook_hosts)):
            yield Problem(
                code="webhook_host_not_allowed",
                template="this server does not call that address",
                remedy_template="give http:// or https:// and one of {hosts}, without credentials, spaces and "
                "control characters",
                field="webhook_url",
                value=url,
                details={"hosts": ", ".join(self.webhook_hosts)},
            )

    def _prompt_problems(self, request: ResolvedRequest, tokenize: Tokenize) -> Iterator[Problem]:
        for field, prompt in (("prompt", request.prompt), ("negative_prompt", request.negative_prompt)):
            try:
                tokenize_prompt(prompt, tokenize, max_tokens=self.settings.max_prompt_tokens)
            except PromptTooLongError as error:
                yield from error.within(field=field, value=prompt).problems
        if request.rewrite_prompt and not self.settings.rewrites_prompts:
            yield Problem(
                code="rewrite_not_supported",
                template="this model's text encoder cannot generate text",
                remedy_template="give false, or serve flavour final",
                field="rewrite_prompt",
                value=True,
            )


def _expand_problems(request: ResolvedRequest) -> Iterator[Problem]:
    """Yield the problem of margins that leave no square of the grid for the picture."""
    if request.edit is None:
        return
    left, top, right, bottom = request.edit.margins
    for side, most, margins in (("left", request.width, left + right), ("top", request.height, top + bottom)):
        if most - margins < GRID_PX:
            yield Problem(
                code="expand_exceeds_image",
                template="margins of {margins} px leave less than {least} of {most} px for the picture",
                remedy_template="give smaller margins, or a larger image",
                field=f"expand.{side}",
                value=getattr(request.edit.expand, side),
                details={"margins": margins, "least": GRID_PX, "most": most},
            )


def _above(limit: float, *, field: str, value: float) -> Problem:
    """Return the problem of a number above the server's limit."""
    return Problem(
        code="above_server_limit",
        template="more than the {limit} that this server allows",
        remedy_template="give at most {limit}",
        field=field,
        value=value,
        details={"limit": int(limit) if limit == int(limit) else limit},
    )

"""What one request may ask of this model on this server, and the defaults of what it leaves open. No torch."""

import math
import secrets
import sys
from dataclasses import dataclass
from typing import Self
from urllib.parse import urlsplit

from longcat.adapter import parse_reference
from longcat.errors import AdapterError, PromptTooLongError
from longcat.flavour import ModelSettings
from longcat.prompt import Tokenize, tokenize_prompt
from service.refusals import InvalidRequestError, problem_with
from service.schema import GRID_PX, LARGEST_SEED, FieldProblem, GenerateRequest, ResolvedRequest


@dataclass(frozen=True, kw_only=True)
class Limits:
    """What one request may ask of this model on this server."""

    settings: ModelSettings
    max_pixels: int
    """Largest width times height."""
    max_steps: int
    max_images: int
    """Most pictures a request."""
    has_adapters: bool
    """Whether adapters can be had at all."""
    webhook_hosts: tuple[str, ...] = ()
    """Hosts that may be told of finished jobs, as ``name`` or ``name:port``."""

    @classmethod
    def of_model(cls, settings: ModelSettings, *, has_adapters: bool = False) -> Self:
        """No limits but the model's own: for a person drawing on their own machine."""
        return cls(
            settings=settings,
            max_pixels=settings.max_pixels,
            max_steps=sys.maxsize,
            max_images=sys.maxsize,
            has_adapters=has_adapters,
        )

    def resolve(self, request: GenerateRequest, tokenize: Tokenize) -> ResolvedRequest:
        """Fill in the model's defaults and hold the request against the limits. Raises ``InvalidRequestError``."""
        size = self.settings.default_size_px
        resolved = ResolvedRequest(
            prompt=request.prompt,
            negative_prompt=request.negative_prompt,
            width=size if request.width is None else request.width,
            height=size if request.height is None else request.height,
            steps=min(self.settings.default_steps, self.max_steps) if request.steps is None else request.steps,
            guidance_scale=(
                self.settings.default_guidance_scale if request.guidance_scale is None else request.guidance_scale
            ),
            seed=secrets.randbelow(2**32) if request.seed is None else request.seed,
            num_images=request.num_images,
            cfg_renorm=request.cfg_renorm,
            rewrite_prompt=request.rewrite_prompt,
            output_format=request.output_format,
            adapters=request.adapters,
        )
        problems = [
            *self._size_problems(resolved), *self._count_problems(resolved), *self._adapter_problems(resolved),
            *self._delivery_problems(request),
        ]  # fmt: skip
        for field in ("prompt", "negative_prompt"):
            problems += self._prompt_problems(field, getattr(resolved, field), tokenize)
        if resolved.rewrite_prompt and not self.settings.rewrites_prompts:
            problems.append(
                problem_with(
                    "rewrite_prompt",
                    True,
                    "this model's text encoder cannot write",
                    "give false, or serve flavour final",
                )
            )
        if problems:
            raise InvalidRequestError(problems)
        return resolved

    def _size_problems(self, request: ResolvedRequest) -> list[FieldProblem]:
        pixels = request.width * request.height
        if pixels <= self.max_pixels:
            return []
        side = math.isqrt(self.max_pixels) // GRID_PX * GRID_PX
        return [
            problem_with(
                "width",
                request.width,
                f"{request.width} x {request.height} is {pixels} pixels; at most {self.max_pixels} are drawn here",
                f"give at most {side} x {side}",
            )
        ]

    def _count_problems(self, request: ResolvedRequest) -> list[FieldProblem]:
        limits = {"steps": self.max_steps, "num_images": self.max_images}
        problems = [
            problem_with(field, getattr(request, field), f"more than the {limit} allowed here", f"give at most {limit}")
            for field, limit in limits.items()
            if getattr(request, field) > limit
        ]
        if request.seed + request.num_images - 1 > LARGEST_SEED:
            problems.append(
                problem_with("seed", request.seed, "seed + num_images leaves 63 bits", "give a smaller seed")
            )
        return problems

    def _adapter_problems(self, request: ResolvedRequest) -> list[FieldProblem]:
        if request.adapters and not self.has_adapters:
            remedy = "leave it out, or start with --adapters"
            return [problem_with("adapters", request.adapters[0].name, "no adapter storage is configured here", remedy)]
        problems, names = [], set()
        for i, choice in enumerate(request.adapters):
            try:
                name = parse_reference(choice.name).name
            except AdapterError as error:
                problems.append(problem_with(f"adapters.{i}.name", choice.name, str(error), "give a name that can be"))
                continue
            if name in names:
                problems.append(
                    problem_with(f"adapters.{i}.name", choice.name, f"{name} is there twice", "give it once")
                )
            names.add(name)
        return problems

    def _delivery_problems(self, request: GenerateRequest) -> list[FieldProblem]:
        problems = []
        if request.as_job and request.stream:
            problems.append(problem_with("stream", True, "a job has no stream", "leave out stream or async"))
        if (url := request.webhook_url) is not None:
            if not request.as_job:
                problems.append(problem_with("webhook_url", url, "is for jobs", 'give "async": true with it'))
            if not self.webhook_hosts:
                remedy = "leave it out, or start with --webhook-secret and --webhook-host"
                problems.append(problem_with("webhook_url", url, "this server calls nobody", remedy))
            elif not self._may_call(url):
                remedy = f"give http:// or https:// and one of {', '.join(self.webhook_hosts)}, without credentials"
                problems.append(problem_with("webhook_url", url, "this server does not call that", remedy))
        return problems

    def _may_call(self, url: str) -> bool:
        try:
            parts = urlsplit(url)
            host, port = (parts.hostname or "").lower(), parts.port
        except ValueError:  # no port, or brackets that do not match
            return False
        named = {host, f"{host}:{port}"} & set(self.webhook_hosts)
        return parts.scheme in ("http", "https") and "@" not in parts.netloc and bool(named)

    def _prompt_problems(self, field: str, prompt: str, tokenize: Tokenize) -> list[FieldProblem]:
        try:
            tokenize_prompt(prompt, tokenize, max_tokens=self.settings.max_prompt_tokens)
        except PromptTooLongError as error:
            remedy = f"shorten it by at least {error.tokens - error.max_tokens} tokens"
            return [
                problem_with(
                    field, prompt, f"{error.tokens} tokens; the model reads at most {error.max_tokens}", remedy
                )
            ]
        return []

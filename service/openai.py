"""What OpenAI's clients ask for pictures with: ``POST /v1/images/generations`` and ``GET /v1/models``.

An adapter is a model: ``model="ink"`` draws with it. Errors have OpenAI's shape, and its status for what is wrong with a
request, 400.
"""

import base64
import time
from collections.abc import AsyncIterator, Iterator

from fastapi import FastAPI, Request
from fastapi.responses import JSONResponse, Response, StreamingResponse
from starlette.requests import ClientDisconnect

from longcat.adapter import parse_reference
from longcat.errors import AdapterError
from service.adapters import AdapterRoutes
from service.admission import CLIENT_GONE, Admission, count, gone
from service.messages import AdapterState, Draw, Failed, PreviewFile, RefusedError, Reply
from service.openai_schema import (
    CompletedEvent,
    ImageDatum,
    ImagesRequest,
    ImagesResponse,
    ModelCard,
    ModelList,
    OpenAIError,
    OpenAIErrorBody,
    PartialImageEvent,
    Usage,
)
from service.picture import Rendered
from service.refusals import UNKNOWN_FIELD, InvalidRequestError
from service.replies import Responses, event, failure_of, headers_of

_ERRORS: Responses = {status: {"model": OpenAIErrorBody} for status in (400, 404, 413, 429, 500, 503, 504)}
_NO_MODEL = "The model `{}` does not exist; GET /v1/models lists those that do."
_OUR_NAMES = {"num_images": "n", "width": "size", "height": "size"}
"""Fields that have another name in their requests."""


class OpenAIRoutes:
    """The endpoints."""

    def __init__(self, admission: Admission, adapters: AdapterRoutes) -> None:
        self._admission = admission
        self._adapters = adapters
        self._base = admission.flavour.name
        self._started = int(time.time())

    def add_to(self, app: FastAPI) -> None:
        """Register them."""
        schema = ImagesRequest.model_json_schema(ref_template="#/components/schemas/{model}")
        schema.pop("$defs")  # they are among the components already
        body = {"requestBody": {"required": True, "content": {"application/json": {"schema": schema}}}}
        app.add_api_route(
            "/v1/images/generations", self._generate, methods=["POST"], name="images", tags=["openai"],
            summary="Draw pictures, as OpenAI has it", response_model=ImagesResponse, responses=_ERRORS, openapi_extra=body,
        )  # fmt: skip
        app.add_api_route(
            "/v1/models", self._list, methods=["GET"], name="models", tags=["openai"],
            summary="The base model and its adapters, as OpenAI has it", response_model=ModelList, responses=_ERRORS,
        )  # fmt: skip
        app.add_api_route(
            "/v1/models/{model:path}", self._show, methods=["GET"], name="model", tags=["openai"],
            summary="One model, as OpenAI has it", response_model=ModelCard, responses=_ERRORS,
        )  # fmt: skip

    async def _generate(self, request: Request) -> Response:
        begin = time.monotonic()
        model = None
        try:
            wanted = await self._admission.read(ImagesRequest, request)
            model = wanted.adapter(self._base)
            response = await self._answer(wanted, request, begin)
        except ClientDisconnect:
            response = Response(status_code=CLIENT_GONE)
        except Exception as error:
            response = _reply_to_error(error, model)
        if not isinstance(response, StreamingResponse):  # those count themselves when they are over
            count(response.status_code, begin)
        return response

    async def _answer(self, wanted: ImagesRequest, request: Request, begin: float) -> Response:
        self._check_model(wanted)
        partial_images = wanted.partial_images or 0 if wanted.stream else 0
        draw = self._admission.take(wanted.as_generate(self._base), begin, previews=partial_images)
        if wanted.stream:
            model = wanted.adapter(self._base)
            return StreamingResponse(self._events(request, draw, model), media_type="text/event-stream")
        rendered = await self._admission.answer(draw, request)
        return Response(
            self._images(draw, rendered).model_dump_json(exclude_none=True),
            media_type="application/json",
            headers=headers_of(draw.id, self._admission.flavour.hash, draw.request, rendered),
        )

    def _check_model(self, wanted: ImagesRequest) -> None:
        """Refuse what cannot be the name of an adapter here. Whether there is one of that name, the engine finds out."""
        if (model := wanted.adapter(self._base)) is None:
            return
        try:
            parse_reference(model)
        except AdapterError as error:
            raise _no_model(model) from error
        if not self._admission.limits.has_adapters:
            raise _no_model(model)

    def _images(self, draw: Draw, rendered: Rendered) -> ImagesResponse:
        request = draw.request
        return ImagesResponse(
            created=int(time.time()),
            output_format=request.output_format,
            size=_size(draw),
            usage=self._usage(draw, len(rendered.files)),
            data=[
                ImageDatum(
                    b64_json=_base64(file),
                    revised_prompt=rendered.prompt if request.rewrite_prompt else None,
                    seed=request.seed + i,
                )
                for i, file in enumerate(rendered.files)
            ],
        )

    async def _events(self, request: Request, draw: Draw, model: str | None) -> AsyncIterator[bytes]:
        status, partials = 200, [0] * draw.request.num_images
        try:
            async with self._admission.send(draw) as mailbox:
                while not mailbox.is_over:
                    reply = await self._admission.next(draw, mailbox, gone(request))
                    if isinstance(reply, Failed):
                        raise RefusedError(reply)
                    for content in self._as_events(draw, reply, partials):
                        yield content
        except ClientDisconnect:
            status = CLIENT_GONE
        except Exception as error:  # the status line is sent already: it has to be an event
            status, body = _error_of(error, model)
            yield event("error", body)
        finally:
            count(status, draw.submitted_at)

    def _as_events(self, draw: Draw, reply: Reply, partials: list[int]) -> Iterator[bytes]:
        """``partials``: how many partial images each picture has had."""
        now, size = int(time.time()), _size(draw)
        match reply:
            case PreviewFile():
                partial = PartialImageEvent(
                    b64_json=_base64(reply.content), created_at=now, output_format="jpeg", size=size,
                    image_index=reply.image, partial_image_index=partials[reply.image],
                )  # fmt: skip
                partials[reply.image] += 1
                yield event(partial.type, partial)
            case Rendered():
                for i, file in enumerate(reply.files):
                    completed = CompletedEvent(
                        b64_json=_base64(file), created_at=now, output_format=draw.request.output_format, size=size,
                        image_index=i, usage=self._usage(draw, 1), seed=draw.request.seed + i,
                    )  # fmt: skip
                    yield event(completed.type, completed)
            case _:
                raise AssertionError(f"no reply to a request without progress: {reply!r}")

    def _usage(self, draw: Draw, pictures: int) -> Usage:
        words = len(self._admission.tokenize(draw.request.prompt))
        return Usage.of(
            text_tokens=words, width_px=draw.request.width, height_px=draw.request.height, pictures=pictures
        )

    async def _list(self) -> Response:
        """`model` of a request is one of these; an adapter's `root` is the version that its name means now."""
        try:
            return _reply(ModelList(data=await self._models()))
        except RefusedError as error:
            return _reply_to_error(error)

    async def _show(self, model: str) -> Response:
        """The base model, or an adapter by its name."""
        try:
            for card in await self._models():
                if model in (card.id, card.root):
                    return _reply(card)
            raise _no_model(model)
        except RefusedError as error:
            return _reply_to_error(error, model)

    async def _models(self) -> list[ModelCard]:
        flavour = self._admission.flavour
        cards = [ModelCard(id=self._base, created=self._started, root=flavour.hash)]
        if self._admission.limits.has_adapters:
            for status in (await self._adapters.report()).adapters:
                if status.state in (AdapterState.READY, AdapterState.OUTDATED) and status.created is not None:
                    created, root = int(status.created.timestamp()), f"{status.name}@{status.version}"
                    cards.append(ModelCard(id=status.name, created=created, root=root, parent=self._base))
        return cards


def _size(draw: Draw) -> str:
    return f"{draw.request.width}x{draw.request.height}"


def _base64(content: bytes) -> str:
    return base64.b64encode(content).decode("ascii")


def _no_model(model: str) -> RefusedError:
    return RefusedError(Failed(status=404, code="model_not_found", message=_NO_MODEL.format(model)))


def _reply(body: ModelCard | ModelList) -> Response:
    return Response(body.model_dump_json(), media_type="application/json")


def _error_of(error: Exception, model: str | None = None) -> tuple[int, OpenAIErrorBody]:
    """Status and body; ``model``: the adapter that was asked for as a model."""
    failed = failure_of(error)
    status = 400 if failed.status == 422 else failed.status
    message, param, code = failed.message, None, failed.code
    if isinstance(error, InvalidRequestError):
        renamed = [p.model_copy(update={"field": _OUR_NAMES.get(p.field, p.field)}) for p in error.problems]
        once = list({(p.field, p.problem): p for p in renamed}.values())  # size is both our width and our height
        message, param = str(InvalidRequestError(once)), renamed[0].field or None
        code = "unknown_parameter" if renamed[0].problem == UNKNOWN_FIELD else "invalid_value"
    elif failed.status == 404:
        param, code = "adapters", failed.code
        if model is not None and (code == "model_not_found" or repr(model.partition("@")[0]) in message):
            message, param, code = _NO_MODEL.format(model), "model", "model_not_found"
    kinds = {401: "authentication_error", 429: "rate_limit_error"}
    kind = kinds.get(status, "invalid_request_error" if status < 500 else "server_error")
    return status, OpenAIErrorBody(error=OpenAIError(message=message, type=kind, param=param, code=code))


def _reply_to_error(error: Exception, model: str | None = None) -> JSONResponse:
    status, body = _error_of(error, model)
    seconds = failure_of(error).retry_after_seconds
    headers = None if seconds is None else {"Retry-After": str(seconds)}
    return JSONResponse(body.model_dump(), status_code=status, headers=headers)

"""OpenAI's endpoints for images, ``POST /v1/images/generations`` and ``edits``, and ``GET /v1/models``, for its clients.

An adapter is a model: ``model="ink"`` generates with it. Errors have OpenAI's shape, and its status for a request that is
wrong, 400.
"""

import base64
import dataclasses
import time
from collections.abc import Callable, Iterator

from fastapi import APIRouter, Request
from fastapi.responses import Response

from longcat.adapter.reference import parse_reference
from longcat.errors import AdapterError, LithographError, UnknownAdapterError, UserError
from longcat.problem import show
from service.access.caller import ForbiddenError
from service.http.adapters import AdapterCommands, AdapterCommandsDependency
from service.http.admission import Admission, AdmissionDependency
from service.http.compat.errors import ERRORS, OpenAIRoute, UnknownModelError, openai_error
from service.http.compat.openai_schema import (
    CompletedEvent,
    EditsRequest,
    ImageDatum,
    ImagesRequest,
    ImagesResponse,
    ModelCard,
    ModelList,
    PartialImageEvent,
    Usage,
    answered_quality,
)
from service.http.pictures import EVENTS, headers_of, reply_with_events, server_sent
from service.wire.events import ErrorEvent, PreviewEvent, ResultEvent, SentEvent
from service.wire.messages import AdapterAction, AdapterState, AdapterStatus, GenerateCommand

router = APIRouter(tags=["openai"], route_class=OpenAIRoute, responses=ERRORS)


@router.post(
    "/v1/images/generations",
    summary="Generate images, as OpenAI has it",
    response_model=ImagesResponse,
    responses={200: {"content": {"text/event-stream": EVENTS}}},
)
async def generate_images(body: ImagesRequest, request: Request, admission: AdmissionDependency) -> Response:
    """Reply with the pictures in base64, or with events (`stream`)."""
    return await _reply(body, request, admission)


@router.post(
    "/v1/images/edits",
    summary="Change a picture, as OpenAI has it",
    response_model=ImagesResponse,
    responses={200: {"content": {"text/event-stream": EVENTS}}},
)
async def edit_image(body: EditsRequest, request: Request, admission: AdmissionDependency) -> Response:
    """Multipart or JSON. With a mask, only what is transparent in it changes; else all of the picture does (`strength`)."""
    return await _reply(body, request, admission)


@router.post("/v1/images/variations", summary="Not offered: edits with a prompt are")
async def vary_image() -> Response:
    """Refuse: the model makes no picture without a prompt."""
    raise UserError(
        "variations_not_offered",
        "this model makes no variations without a prompt",
        remedy="send the picture with a prompt to POST /v1/images/edits",
    )


async def _reply(body: ImagesRequest, request: Request, admission: Admission) -> Response:
    base = admission.flavour.name
    check_model(body, admission)
    previews = body.partial_images or 0 if body.stream else 0
    try:
        command = await admission.take(body.as_generate(base), request, stream=bool(body.stream), previews=previews)
        if body.stream:
            events = admission.events(command, request)
            return await reply_with_events(request, events, _encoder(command, body, admission))
        result = await admission.result(command, request)
    except LithographError as error:
        raise in_sent_fields(error, body, base) from error
    return Response(
        images_of(command, result, admission).model_dump_json(exclude_none=True),
        media_type="application/json",
        headers=headers_of(result),
    )


@router.get("/v1/models", summary="The base model and its adapters, as OpenAI has it")
async def list_models(admission: AdmissionDependency, commands: AdapterCommandsDependency) -> ModelList:
    """`model` of a request is one of these; an adapter's `root` is the version that its name means now."""
    return ModelList(data=await _models(admission, commands))


@router.get("/v1/models/{model:path}", summary="One model, as OpenAI has it")
async def show_model(model: str, admission: AdmissionDependency, commands: AdapterCommandsDependency) -> ModelCard:
    """The base model, or an adapter by its name or by any of its versions."""
    for card in await _models(admission, commands):
        if model in (card.id, card.root):
            return card
    try:
        if parse_reference(model).version is None or not admission.limits.has_adapters:
            raise _unknown_model(model)
        (version,) = (await commands.send(AdapterAction.FIND, model)).adapters
    except (AdapterError, ForbiddenError) as error:
        raise _unknown_model(model) from error
    return _card(version, model, admission)


async def _models(admission: Admission, commands: AdapterCommands) -> list[ModelCard]:
    flavour = admission.flavour
    cards = [ModelCard(id=flavour.name, created=admission.started_at, root=flavour.hash)]
    if admission.limits.has_adapters:
        statuses = (await commands.report()).adapters
        served = (AdapterState.READY, AdapterState.OUTDATED)
        cards.extend(_card(status, status.name, admission) for status in statuses if status.state in served)
    return cards


def _card(status: AdapterStatus, name: str, admission: Admission) -> ModelCard:
    """Return the card of a version that requests can use."""
    assert status.created is not None
    created, root = int(status.created.timestamp()), f"{status.name}@{status.version}"
    return ModelCard(id=name, created=created, root=root, parent=admission.flavour.name)


def check_model(body: ImagesRequest, admission: Admission) -> None:
    """Raise ``UnknownModelError`` for an invalid adapter name. The engine looks up the valid ones."""
    if (model := body.adapter(admission.flavour.name)) is None:
        return
    try:
        parse_reference(model)
    except AdapterError as error:
        raise _unknown_model(model) from error
    if not admission.limits.has_adapters:
        raise _unknown_model(model)


def _unknown_model(model: str) -> UnknownModelError:
    return UnknownModelError(
        "unknown_model",
        "The model `{name}` does not exist",
        remedy="GET /v1/models lists the models that do",
        field="model",
        name=show(model),
    )


def in_sent_fields(error: LithographError, body: ImagesRequest, base: str) -> LithographError:
    """Return an error with the fields that the client sent, and their values.

    ``size`` is a width and a height here, ``n`` is ``num_images``, and a model that is an adapter is the first of
    ``adapters``.
    """
    sent = error.renamed("num_images", "n")
    sent.problems = tuple(
        dataclasses.replace(problem, field="size", value=body.size) if problem.field in ("width", "height") else problem
        for problem in sent.problems
    )
    error, model, given = sent, body.adapter(base), [choice.name for choice in body.adapters]
    if model is None:
        return error
    if model in given:
        sent = error.renamed(f"adapters.{given.index(model)}.name", "model")
    else:
        sent = error.renamed("adapters.0.name", "model")
        for i in range(len(given)):
            sent = sent.renamed(f"adapters.{i + 1}.name", f"adapters.{i}.name")
    is_unknown = isinstance(error, UnknownAdapterError) and sent.problems[0].field == "model"
    return _unknown_model(model) if is_unknown else sent


def images_of(command: GenerateCommand, result: ResultEvent, admission: Admission) -> ImagesResponse:
    """Return the body of a reply with pictures."""
    request = command.request
    return ImagesResponse(
        created=int(time.time()),
        output_format=request.output_format,
        quality=answered_quality(request.quality),
        size=_size(command),
        usage=_usage(command, len(result.images), admission),
        data=[
            ImageDatum(
                b64_json=_base64(image.content),
                revised_prompt=result.prompt if request.rewrite_prompt else None,
                seed=image.seed,
            )
            for image in result.images
        ],
    )


def _encoder(
    command: GenerateCommand, body: ImagesRequest, admission: Admission
) -> Callable[[SentEvent], Iterator[bytes]]:
    """Return a function that writes an event as OpenAI's events."""
    size, partials = _size(command), [0] * command.request.num_images
    is_edit = isinstance(body, EditsRequest)
    quality = answered_quality(command.request.quality)

    def encode(event: SentEvent) -> Iterator[bytes]:
        now = int(time.time())
        match event:
            case PreviewEvent():
                partial = PartialImageEvent(
                    type="image_edit.partial_image" if is_edit else "image_generation.partial_image",
                    b64_json=_base64(event.content), created_at=now, output_format="jpeg", quality=quality, size=size,
                    image_index=event.image, partial_image_index=partials[event.image],
                )  # fmt: skip
                partials[event.image] += 1
                yield server_sent(partial.type, partial)
            case ResultEvent():
                for i, image in enumerate(event.images):
                    completed = CompletedEvent(
                        type="image_edit.completed" if is_edit else "image_generation.completed",
                        b64_json=_base64(image.content), created_at=now, output_format=command.request.output_format,
                        quality=quality, size=size, image_index=i, usage=_usage(command, 1, admission), seed=image.seed,
                    )  # fmt: skip
                    yield server_sent(completed.type, completed)
            case ErrorEvent():
                error = in_sent_fields(event.error, body, admission.flavour.name)
                yield server_sent("error", openai_error(error, command.request_id)[1])
            case _:
                raise AssertionError(f"no event of a request without progress: {event!r}")

    return encode


def _usage(command: GenerateCommand, pictures: int, admission: Admission) -> Usage:
    request = command.request
    tokens = len(admission.tokenize(request.prompt))
    return Usage.of(text_tokens=tokens, width_px=request.width, height_px=request.height, pictures=pictures)


def _size(command: GenerateCommand) -> str:
    return f"{command.request.width}x{command.request.height}"


def _base64(content: bytes) -> str:
    return base64.b64encode(content).decode("ascii")

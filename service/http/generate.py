"""``POST /v1/tokens`` counts a prompt; ``POST /generate``: pictures, JSON with them, server-sent events, or a job."""

from collections.abc import Iterator

from fastapi import APIRouter, Request
from fastapi.responses import Response

from longcat.sampling.prompt import least_tokens, tokenize_body
from service.http.adapters import AdapterCommandsDependency
from service.http.admission import AdmissionDependency
from service.http.error_responses import GENERATE_ERRORS
from service.http.jobs.lasting.pinning import pinned
from service.http.jobs.routes import JobsDependency, reply_with_job
from service.http.pictures import PICTURES, reply_with_events, reply_with_pictures, server_sent
from service.http.requests.json_body import JsonRoute
from service.http.requests.threads import run_in_thread
from service.wire.errors import ErrorBody, ErrorDetail
from service.wire.events import ErrorEvent, SentEvent
from service.wire.schema import GenerateRequest, TokenCount, TokensRequest

router = APIRouter(tags=["model"], route_class=JsonRoute)


@router.post("/generate", summary="Generate images", response_class=Response, responses=PICTURES)
async def generate(
    body: GenerateRequest,
    request: Request,
    admission: AdmissionDependency,
    jobs: JobsDependency,
    adapters: AdapterCommandsDependency,
) -> Response:
    """Reply with the picture, a zip of several, JSON, events (`stream`) or a job (`async`)."""
    previews = None if body.stream and body.previews else 0
    progress = body.stream or body.as_job
    command = await admission.take(body, request, stream=body.stream, progress=progress, previews=previews)
    if body.as_job:
        command = await pinned(command, adapters) if jobs.are_lasting else command
        job = await jobs.start(command, body, root_path=request.scope["root_path"])
        return reply_with_job(job, jobs.report(job), retry_after_seconds=admission.exchange.wait_seconds)
    if body.stream:

        def encode(event: SentEvent) -> Iterator[bytes]:
            if isinstance(event, ErrorEvent):
                yield server_sent(
                    event.name, ErrorBody(error=ErrorDetail.of(event.error, request_id=command.request_id))
                )
            else:
                yield server_sent(event.name, event)

        return await reply_with_events(request, admission.events(command, request), encode)
    result = await admission.result(command, request)
    return reply_with_pictures(result, as_json=body.response_format == "json")


@router.post(
    "/v1/tokens",
    summary="Count a prompt's tokens",
    responses={status: GENERATE_ERRORS[status] for status in (400, 408, 413, 422, 431)},
)
async def count_tokens(body: TokensRequest, admission: AdmissionDependency) -> TokenCount:
    """Return the number of tokens of a prompt, and the most that a request may have."""
    most = admission.limits.settings.max_prompt_tokens
    if (least := least_tokens(body.prompt, max_tokens=most)) > most:
        return TokenCount(tokens=least, max_tokens=most, is_exact=False)
    ids = await run_in_thread(tokenize_body, body.prompt, admission.tokenize)
    return TokenCount(tokens=len(ids), max_tokens=most)

"""``POST /generate``: pictures, JSON with them, server-sent events, or a job."""

from collections.abc import Iterator

from fastapi import APIRouter, Request
from fastapi.responses import Response

from service.http.admission import AdmissionDependency
from service.http.jobs.routes import JobsDependency, reply_with_job
from service.http.pictures import PICTURES, reply_with_events, reply_with_pictures, server_sent
from service.http.requests.json_body import JsonRoute
from service.wire.events import ErrorEvent, SentEvent
from service.wire.schema import ErrorBody, ErrorDetail, GenerateRequest

router = APIRouter(tags=["model"], route_class=JsonRoute)


@router.post("/generate", summary="Generate images", response_class=Response, responses=PICTURES)
async def generate(
    body: GenerateRequest,
    request: Request,
    admission: AdmissionDependency,
    jobs: JobsDependency,
) -> Response:
    """Reply with the picture, a zip of several, JSON, events (`stream`) or a job (`async`)."""
    previews = None if body.stream and body.previews else 0
    progress = body.stream or body.as_job
    command = await admission.take(body, request, stream=body.stream, progress=progress, previews=previews)
    if body.as_job:
        job = await jobs.start(command, body, root_path=request.scope["root_path"])
        return reply_with_job(job, jobs.report(job), retry_after_seconds=admission.exchange.wait_seconds)
    if body.stream:

        def encode(event: SentEvent) -> Iterator[bytes]:
            if isinstance(event, ErrorEvent):
                yield server_sent(event.name, ErrorBody(error=ErrorDetail.of(event.error, request_id=command.id)))
            else:
                yield server_sent(event.name, event)

        return await reply_with_events(request, admission.events(command, request), encode)
    result = await admission.result(command, request)
    return reply_with_pictures(result, as_json=body.response_format == "json")

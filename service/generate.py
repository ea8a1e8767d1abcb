"""``POST /generate``: the pictures, JSON with them, server-sent events, or a job."""

import base64
import time
from collections.abc import AsyncIterator

from fastapi import FastAPI, Request
from fastapi.responses import Response, StreamingResponse
from starlette.requests import ClientDisconnect

from service.admission import CLIENT_GONE, Admission, count, gone
from service.jobs import Jobs
from service.messages import Draw, Failed, PreviewFile, Reply, Step
from service.picture import Rendered
from service.replies import RESPONSES, event, failure_of, pictures, pictures_in_json, reply_to_error
from service.schema import ErrorBody, ErrorDetail, GenerateRequest, PreviewEvent, StepEvent


class GenerateRoute:
    """The endpoint."""

    def __init__(self, admission: Admission, jobs: Jobs) -> None:
        self._admission = admission
        self._jobs = jobs

    def add_to(self, app: FastAPI) -> None:
        """Register it."""
        schema = GenerateRequest.model_json_schema(ref_template="#/components/schemas/{model}")
        schema.pop("$defs")  # they are among the components already, as parts of the response
        app.add_api_route(
            "/generate",
            self._generate,
            methods=["POST"],
            name="generate",
            tags=["model"],
            summary="Draw pictures",
            response_class=Response,
            responses=RESPONSES,
            openapi_extra={"requestBody": {"required": True, "content": {"application/json": {"schema": schema}}}},
        )

    async def _generate(self, request: Request) -> Response:
        begin = time.monotonic()
        try:
            response = await self._answer(request, begin)
        except ClientDisconnect:
            response = Response(status_code=CLIENT_GONE)
        except Exception as error:
            response = reply_to_error(error)
        if not isinstance(response, StreamingResponse):  # those count themselves when they are over
            count(response.status_code, begin)
        return response

    async def _answer(self, request: Request, begin: float) -> Response:
        wanted = await self._admission.read(GenerateRequest, request)
        previews = None if wanted.stream and wanted.previews else 0
        draw = self._admission.take(wanted, begin, progress=wanted.stream or wanted.as_job, previews=previews)
        if wanted.as_job:
            return await self._jobs.start(draw, wanted)
        if wanted.stream:
            return StreamingResponse(self._events(request, draw), media_type="text/event-stream")
        rendered = await self._admission.answer(draw, request)
        as_json = wanted.response_format == "json"
        return pictures(draw.id, self._admission.flavour.hash, draw.request, rendered, as_json=as_json)

    async def _events(self, request: Request, draw: Draw) -> AsyncIterator[bytes]:
        status = 200
        try:
            async with self._admission.send(draw) as mailbox:
                while not mailbox.is_over:
                    reply = await self._admission.next(draw, mailbox, gone(request))
                    yield self._event(draw, reply)
                    if isinstance(reply, Failed):
                        status = reply.status
        except ClientDisconnect:
            status = CLIENT_GONE
        except Exception as error:  # the status line is sent already: it has to be an event
            failed = failure_of(error, request_id=draw.id)
            status = failed.status
            yield self._event(draw, failed)
        finally:
            count(status, draw.submitted_at)

    def _event(self, draw: Draw, reply: Reply) -> bytes:
        match reply:
            case Step():
                return event("progress", StepEvent(image=reply.image, step=reply.step, steps=reply.steps))
            case PreviewFile():
                content = base64.b64encode(reply.content).decode("ascii")
                return event("preview", PreviewEvent(image=reply.image, step=reply.step, b64=content))
            case Rendered():
                return event("result", pictures_in_json(draw.id, self._admission.flavour.hash, draw.request, reply))
            case Failed():
                return event("error", ErrorBody(error=ErrorDetail(code=reply.code, message=reply.message)))
            case _:
                raise AssertionError(f"no reply to a request to draw: {reply!r}")

"""``GET`` and ``DELETE /v1/jobs/{id}``, and the result of a job. ``POST /generate`` with ``"async": true`` makes one."""

from typing import Annotated

from fastapi import APIRouter, Depends, Request
from fastapi.responses import JSONResponse, Response

from longcat.errors import UserError
from service.http.edge.authentication import CallerDependency
from service.http.error_responses import Responses
from service.http.jobs.job import UNFINISHED, ImageJob
from service.http.jobs.jobs import ImageJobs
from service.http.pictures import PICTURES, reply_with_pictures
from service.wire.errors import ErrorBody, UnavailableError
from service.wire.events import ErrorEvent
from service.wire.job import JobReport, JobStatus

_POLL_SECONDS = 1


class UnfinishedJobError(UnavailableError):
    """The result of an unfinished job was requested."""

    code = "not_finished"
    retry_after_seconds = _POLL_SECONDS


class CancelledJobError(UserError):
    """The result of a cancelled job was requested."""

    code = "cancelled"


async def jobs_of(request: Request) -> ImageJobs:
    """Return the app's jobs."""
    jobs: ImageJobs = request.app.state.jobs
    return jobs


async def job_of(job_id: str, jobs: Annotated[ImageJobs, Depends(jobs_of)], caller: CallerDependency) -> ImageJob:
    """Return the job in the path. Raises ``UnknownJobError``, or ``StorageError`` if jobs are in storage."""
    return await jobs.get(job_id, caller)


JobsDependency = Annotated[ImageJobs, Depends(jobs_of)]
JobDependency = Annotated[ImageJob, Depends(job_of)]
_ERRORS: Responses = {
    404: {"description": "No such job: it never existed, has expired, or was evicted.", "model": ErrorBody},
    503: {"description": "The storage of jobs cannot be reached.", "model": ErrorBody},
    "default": {"description": "Any other error.", "model": ErrorBody},
}
_NO_RESULT: Responses = {
    409: {"description": "It is not finished.", "model": ErrorBody},
    410: {"description": "It was cancelled.", "model": ErrorBody},
}

router = APIRouter(tags=["jobs"], responses=_ERRORS)


def reply_with_job(job: ImageJob, report: JobReport, *, retry_after_seconds: int) -> Response:
    """Return the reply to a request that has become a job."""
    headers = {"Location": job.url, "Retry-After": str(retry_after_seconds)}
    return JSONResponse(report.model_dump(mode="json"), status_code=202, headers=headers)


@router.get("/v1/jobs/{job_id}", summary="State of a job")
async def show_job(job: JobDependency, jobs: JobsDependency, response: Response) -> JobReport:
    """The state of a job; with the pictures in base64 if its request had `response_format` `json`."""
    if job.status in UNFINISHED:
        response.headers["Retry-After"] = str(_POLL_SECONDS)
    has_result = job.status is JobStatus.SUCCEEDED and job.request.replies_with_json
    return jobs.report(job, result=await jobs.result(job) if has_result else None)


@router.delete("/v1/jobs/{job_id}", summary="Cancel a job, or remove a finished one")
async def cancel_job(job: JobDependency, jobs: JobsDependency) -> JobReport:
    """An unfinished job costs no more steps; a finished one is removed with its pictures."""
    return jobs.report(await jobs.cancel(job))


@router.get(
    "/v1/jobs/{job_id}/result",
    summary="Result of a job",
    response_class=Response,
    responses={200: PICTURES[200], **_NO_RESULT},
)
async def job_result(job: JobDependency, jobs: JobsDependency) -> Response:
    """Reply as `POST /generate` would have: with the pictures, or with the error."""
    if isinstance(job.outcome, ErrorEvent):
        raise job.outcome.error
    if job.status is JobStatus.CANCELLED:
        raise CancelledJobError(
            "job_cancelled",
            "the job was cancelled and has no pictures",
            remedy="send the request again",
            field="job_id",
            value=job.id,
        )
    if job.status in UNFINISHED:
        raise UnfinishedJobError(
            "job_not_finished",
            "the job is {status}",
            remedy="send the request again later",
            field="job_id",
            value=job.id,
            status=str(job.status),
        )
    return reply_with_pictures(await jobs.result(job), as_json=job.request.replies_with_json)

"""``POST /v1/tokens``: the length of a prompt as the model counts it, against its limit. It needs no engine."""

from fastapi import APIRouter

from longcat.sampling.prompt import least_tokens, tokenize_body
from service.http.admission import AdmissionDependency
from service.http.error_responses import GENERATE_ERRORS
from service.http.requests.json_body import JsonRoute
from service.http.requests.threads import run_in_thread
from service.wire.schema import TokenCount, TokensRequest

router = APIRouter(tags=["model"], route_class=JsonRoute)


@router.post(
    "/v1/tokens",
    summary="Count a prompt's tokens",
    responses={status: GENERATE_ERRORS[status] for status in (400, 408, 413, 422, 431)},
)
async def count_tokens(body: TokensRequest, admission: AdmissionDependency) -> TokenCount:
    """The number of tokens of a prompt, and the most that a request may have."""
    most = admission.limits.settings.max_prompt_tokens
    if (least := least_tokens(body.prompt, max_tokens=most)) > most:
        return TokenCount(tokens=least, max_tokens=most, is_exact=False)
    ids = await run_in_thread(tokenize_body, body.prompt, admission.tokenize)
    return TokenCount(tokens=len(ids), max_tokens=most)

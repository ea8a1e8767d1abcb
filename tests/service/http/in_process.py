"""The HTTP app without an engine, for requests that never reach one."""

import httpx
from fastapi import FastAPI

from longcat.model.flavour import Flavour
from longcat.model.tokenizer import load_tokenizer, plain_ids
from service.config import ServiceConfig
from service.http.admission import Admission
from service.http.app import set_up
from service.http.exchange.exchange import Exchange
from service.wire.state import ServicePhase, ServiceState


def http_client(flavour: Flavour, config: ServiceConfig) -> httpx.AsyncClient:
    """Return a client of a ready app."""
    tokenize = plain_ids(load_tokenizer(flavour.folder))
    state = ServiceState(["cpu"])
    state.engines[0].begin(ServicePhase.READY)
    exchange = Exchange({}, state, max_requests=64, pictures_at_a_time=1, stall_seconds=10)
    admission = Admission(config, flavour, config.limits(flavour), tokenize, exchange, state)
    app = FastAPI()
    set_up(app, admission, is_draining=lambda: False)
    return httpx.AsyncClient(transport=httpx.ASGITransport(app), base_url="http://test")

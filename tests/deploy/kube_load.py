"""Load from inside the cluster, run as ``python -c`` in a pod of the service's image.

It requests ``URL`` repeatedly until the file ``/tmp/stop`` exists, and prints a line of JSON for each request. Of two
clients, one opens a connection for each request, as a load balancer may; the other keeps its connection, as libraries do.
"""

import json
import sys
import threading
from pathlib import Path

import httpx

REQUEST = {"prompt": "a cat", "seed": 1, "steps": 2, "width": 64, "height": 64}
STOP = Path("/tmp/stop")
WRITING = threading.Lock()


def ask(url: str, kind: str) -> None:
    client = httpx.Client(timeout=120)
    while not STOP.exists():
        if kind == "new":
            client.close()
            client = httpx.Client(timeout=120)
        try:
            answer = client.post(url, json=REQUEST)
            outcome = "" if answer.status_code == 200 else f"{answer.status_code} {answer.text}"
        except httpx.HTTPError as error:
            outcome = repr(error)
        with WRITING:
            print(json.dumps({"connection": kind, "failure": outcome}), flush=True)


if __name__ == "__main__":
    for kind in ("new", "kept"):
        threading.Thread(target=ask, args=(sys.argv[1], kind)).start()

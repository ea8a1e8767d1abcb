"""A Kubernetes API server that stores objects and runs nothing."""

import json
from typing import Any

NOW = "2026-05-01T12:00:00Z"


class Api:
    """An API server that records requests and replies from a script."""

    def __init__(self) -> None:
        self.jobs: dict[str, dict[str, Any]] = {}
        self.pods: list[dict[str, Any]] = []
        self.log = ""
        self.configs: list[dict[str, Any]] = []

    def pod(self, name: str, phase: str, **state: Any) -> None:
        """Set the phase of a Job's pod."""
        container = {"name": "trainer", "image": "", "imageID": "", "ready": True, "restartCount": 0, "state": state}
        metadata = {"name": f"{name}-x", "creationTimestamp": NOW, "labels": {"job-name": name}}
        self.pods = [{"metadata": metadata, "status": {"phase": phase, "containerStatuses": [container]}}]

    def end(self, name: str, condition: str, *, reason: str = "Because", message: str = "it is") -> None:
        """End a Job."""
        ended = {"type": condition, "status": "True", "reason": reason, "message": message, "lastTransitionTime": NOW}
        self.jobs[name]["status"] = {"conditions": [ended]}

    def answer(self, method: str, path: str, body: bytes) -> tuple[int, Any]:
        """Reply to one request."""
        path = path.partition("?")[0]
        name = path.rpartition("/")[2]
        sent = json.loads(body) if body else {}
        match method, path.removeprefix("/api/v1/").removeprefix("/apis/batch/v1/").split("/")[2:]:
            case "POST", ["configmaps"]:
                self.configs.append(json.loads(sent["data"]["config.json"]))
                return 201, sent
            case "POST", ["jobs"]:
                if (name := sent["metadata"]["name"]) in self.jobs:
                    return 409, {"kind": "Status", "message": "taken"}
                self.jobs[name] = {**sent, "status": {}}
                self.jobs[name]["metadata"] |= {"uid": "1", "creationTimestamp": NOW, "namespace": "training"}
                return 201, self.jobs[name]
            case "GET", ["jobs", _] if name in self.jobs:
                return 200, self.jobs[name]
            case "DELETE", ["jobs", _] if name in self.jobs:
                del self.jobs[name]
                self.pods = []
                return 200, {}
            case "GET", ["pods"]:
                return 200, {"items": self.pods}
            case "GET", ["pods", _]:
                return 200, self.pods[0]
            case "GET", ["pods", _, "log"]:
                return 200, self.log
            case _, ["configmaps", _]:
                return 200, {}
        return 404, {"kind": "Status", "message": f'jobs.batch "{name}" not found'}

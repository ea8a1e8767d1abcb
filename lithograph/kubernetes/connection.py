"""The connection to a cluster: by a kubeconfig, or by a pod's own account."""

import contextlib
from pathlib import Path

from kubernetes import client
from kubernetes.config import (
    ConfigException,
    list_kube_config_contexts,
    load_incluster_config,
    new_client_from_config,
)

from lithograph.kubernetes.cluster import Cluster
from longcat.errors import ClusterError
from longcat.problem import reason_of

_NAMESPACE_FILE = Path("/var/run/secrets/kubernetes.io/serviceaccount/namespace")
_DEFAULT_FILE = Path("~/.kube/config")


def connect(*, kubeconfig: str | None = None, context: str | None = None, namespace: str | None = None) -> Cluster:
    """Connect to a cluster: a kubeconfig's (several files are joined by ``:``), else a pod's own, else ``~/.kube/config``'s.

    Without a namespace, it is the context's or the pod's. Raises ``ClusterError``.
    """
    default = _DEFAULT_FILE.expanduser()
    if kubeconfig is None and context is None:
        settings = client.Configuration()
        with contextlib.suppress(ConfigException):
            load_incluster_config(client_configuration=settings)
            inside = _NAMESPACE_FILE.read_text(encoding="utf-8").strip() if _NAMESPACE_FILE.exists() else "default"
            return Cluster(client.ApiClient(settings), namespace=namespace or inside)
    if kubeconfig is None and not default.exists():
        raise ClusterError(
            "no_cluster",
            "no Kubernetes cluster: this is not a pod, and there is no {path}",
            remedy="give --kubeconfig or set KUBECONFIG",
            path=str(default),
        )
    file = kubeconfig or str(default)
    try:
        api = new_client_from_config(config_file=file, context=context)
        contexts, active = list_kube_config_contexts(config_file=file)
    except (ConfigException, OSError, ValueError, TypeError) as error:
        raise ClusterError(
            "kubeconfig_unusable",
            "cannot be used: {cause}",
            remedy="check the file and its contexts",
            field="kubeconfig",
            value=file,
            cause=reason_of(error),
        ) from error
    chosen = next((c for c in contexts if c["name"] == context), active)
    return Cluster(api, namespace=namespace or chosen["context"].get("namespace") or "default")

"""The cluster of ``make test-kube``: the one that KUBECONFIG names, or one that is started for the tests."""

import hashlib
import io
import json
import os
import secrets
import shutil
import subprocess
import sys
import tarfile
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, cast

import httpx
import yaml

from tests import ROOT
from tests.deploy.kube_node import PAUSE_IMAGE

REPOSITORY = ROOT
ENGINE = os.environ.get("LITHOGRAPH_TEST_ENGINE", "podman")
TAG = os.environ.get("LITHOGRAPH_TEST_TAG", "0.1.0")
VOLUMES = 8
# Time limits for a much slower machine; no test waits for a fixed time.
WAIT_SECONDS = 600

Manifest = dict[str, Any]


@dataclass(frozen=True, kw_only=True)
class Cluster:
    """A cluster, used through kubectl and, for a Service's pods, through the API server's HTTP proxy."""

    enter: tuple[str, ...]
    """The prefix of commands that reach the API server: it enters the node's network namespace, if there is one."""
    environment: dict[str, str] = field(repr=False)
    """The environment of kubectl, with the kubeconfig."""
    http: httpx.Client = field(repr=False)
    """A client of the API server."""
    version: tuple[int, int]

    def kubectl(self, *arguments: str, check: bool = True, stdin: str | None = None) -> str:
        """Run kubectl and return its output. A failure shows kubectl's message."""
        result = subprocess.run(
            [*self.enter, "kubectl", *arguments],
            env=self.environment, input=stdin, capture_output=True, text=True, check=False,
        )  # fmt: skip
        assert not check or result.returncode == 0, f"kubectl {' '.join(arguments)}: {result.stderr}{result.stdout}"
        return result.stdout

    def get(self, *arguments: str) -> Manifest:
        return cast(Manifest, json.loads(self.kubectl("get", *arguments, "--output=json")))

    def apply(self, manifests: list[Manifest]) -> None:
        self.kubectl("apply", "--filename=-", stdin=yaml.safe_dump_all(manifests))

    def wait(self, what: str, is_so: Callable[[], object], seconds: float = WAIT_SECONDS) -> Any:
        """Wait for ``is_so`` to return a true value and return it; past the deadline, fail with the cluster's state."""
        deadline = time.monotonic() + seconds
        while not (answer := is_so()):
            if time.monotonic() > deadline:
                raise AssertionError(f"after {seconds:.0f} s, not {what}\n{self.describe()}")
            time.sleep(0.25)
        return answer

    def describe(self) -> str:
        """Return the cluster's state for the message of a failed test."""
        commands: list[tuple[str, ...]] = [
            ("get", "all,pvc", "--output=wide"),
            ("get", "events", "--sort-by=.lastTimestamp"),
            ("logs", "--selector=app.kubernetes.io/name=lithograph", "--tail=40", "--prefix"),
        ]
        return "\n".join(self.kubectl(*words, "--namespace=lithograph", check=False) for words in commands)


def environment_with_kubectl() -> dict[str, str]:
    """Return the environment with the kubectl that is installed beside this Python first on PATH."""
    return os.environ | {"PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}"}


@contextmanager
def connected(kubeconfig: str, enter: tuple[str, ...] = ()) -> Iterator[Cluster]:
    environment = environment_with_kubectl() | {"KUBECONFIG": kubeconfig}
    with tempfile.TemporaryDirectory(prefix="lithograph-") as folder:
        # A socket in the file system, which can be reached from outside the node's network.
        socket = Path(folder, "api")
        command = [*enter, "kubectl", "proxy", f"--unix-socket={socket}"]
        proxy = subprocess.Popen(command, env=environment, stdout=subprocess.DEVNULL, stdin=subprocess.DEVNULL)
        try:
            deadline = time.monotonic() + 60
            while not socket.exists():
                assert proxy.poll() is None, f"{command} ended with {proxy.returncode}"
                assert time.monotonic() < deadline, f"{command} opens no socket"
                time.sleep(0.05)
            transport = httpx.HTTPTransport(uds=str(socket))
            with httpx.Client(transport=transport, base_url="http://localhost", timeout=300) as http:
                version = http.get("/version").raise_for_status().json()
                numbers = int(version["major"]), int(version["minor"].rstrip("+"))
                yield Cluster(enter=enter, environment=environment, http=http, version=numbers)
        finally:
            proxy.terminate()
            proxy.wait()


@contextmanager
def own_cluster() -> Iterator[Cluster]:
    """Start :mod:`tests.deploy.kube_node` in namespaces of its own, and give it images, volumes and a namespace."""
    assert os.geteuid() == 0, "only root can start a cluster; or let KUBECONFIG name one"
    made = subprocess.run([REPOSITORY / ".ci" / "kubernetes"], stdout=subprocess.PIPE, text=True, check=True)
    programs = Path(made.stdout.split()[-1])
    folder = Path(tempfile.mkdtemp(prefix="kube-"))
    folder.chmod(0o755)
    groups = make_cgroups(f"lithograph-{secrets.token_hex(4)}")
    command: list[str | Path] = [
        "unshare", "--cgroup", "--mount", "--net", "--pid", "--fork", "--kill-child", "--mount-proc",
        sys.executable, "-m", "tests.deploy.kube_node", programs, folder,
    ]  # fmt: skip
    node = subprocess.Popen(
        command,
        cwd=REPOSITORY, env=environment_with_kubectl(), stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True,
        preexec_fn=lambda: [(group / "cgroup.procs").write_text("0") for group in groups],
    )  # fmt: skip
    assert node.stdin
    assert node.stdout
    try:
        if node.stdout.readline() != "ready\n":
            tails = [f"== {log.name}\n{log.read_text()[-3000:]}" for log in sorted((folder / "logs").glob("*"))]
            raise AssertionError("the cluster did not start:\n" + "\n".join(tails))
        import_images(programs, folder)
        with connected(str(folder / "kubeconfig"), ("nsenter", f"--target={node.pid}", "--net")) as cluster:
            cluster.apply(list(volumes(folder)))
            yield cluster
    finally:
        node.communicate()
        remove_cgroups(groups)
        shutil.rmtree(folder)


def import_images(programs: Path, folder: Path) -> None:
    """Import the images of ``make images`` under the names that the manifests have, and the pause image."""
    ctr = ["ctr", f"--address={folder}/containerd.sock", "--namespace=k8s.io", "images"]
    subprocess.run([*ctr, "import", "-"], input=pause_image(programs / "pause"), stdout=subprocess.DEVNULL, check=True)
    names = [f"lithograph-{target}:{TAG}" for target in ("service", "trainer")]
    together = ["--multi-image-archive"] if Path(ENGINE).name == "podman" else []
    with subprocess.Popen([ENGINE, "save", "--quiet", *together, *names], stdout=subprocess.PIPE) as saving:
        subprocess.run([*ctr, "import", "-"], stdin=saving.stdout, stdout=subprocess.DEVNULL, check=True)
    assert saving.returncode == 0, f"{ENGINE} has not all of {names}; `make images` builds them"
    known = subprocess.run([*ctr, "list", "--quiet"], stdout=subprocess.PIPE, text=True, check=True).stdout.split()
    for name in names:
        (there,) = (image for image in known if image.endswith(f"/{name}"))
        wanted = f"docker.io/library/{name.replace(f':{TAG}', ':0.1.0')}"
        if there != wanted:
            subprocess.run([*ctr, "tag", there, wanted], stdout=subprocess.DEVNULL, check=True)


def pause_image(program: Path) -> bytes:
    """Write an image of one file in the format of ``docker save``."""
    layer = io.BytesIO()
    with tarfile.open(fileobj=layer, mode="w") as tar:
        tar.add(program, arcname="pause")
    digest = hashlib.sha256(layer.getvalue()).hexdigest()
    config = {
        "architecture": "amd64", "os": "linux", "config": {"Entrypoint": ["/pause"]},
        "rootfs": {"type": "layers", "diff_ids": [f"sha256:{digest}"]},
    }  # fmt: skip
    manifest = [{"Config": "config.json", "RepoTags": [PAUSE_IMAGE], "Layers": ["layer.tar"]}]
    image = io.BytesIO()
    with tarfile.open(fileobj=image, mode="w") as tar:
        for name, content in (
            ("layer.tar", layer.getvalue()),
            ("config.json", json.dumps(config).encode()),
            ("manifest.json", json.dumps(manifest).encode()),
        ):
            entry = tarfile.TarInfo(name)
            entry.size = len(content)
            tar.addfile(entry, io.BytesIO(content))
    return image.getvalue()


def volumes(folder: Path) -> Iterator[Manifest]:
    """Make directories of the node the default storage, of kind ``local``, whose files a pod's fsGroup can write."""
    yield {
        "apiVersion": "storage.k8s.io/v1",
        "kind": "StorageClass",
        "metadata": {"name": "standard", "annotations": {"storageclass.kubernetes.io/is-default-class": "true"}},
        "provisioner": "kubernetes.io/no-provisioner",
    }
    for number in range(VOLUMES):
        path = folder / "volumes" / str(number)
        path.mkdir(parents=True)
        here = {"key": "kubernetes.io/hostname", "operator": "In", "values": ["node"]}
        yield {
            "apiVersion": "v1",
            "kind": "PersistentVolume",
            "metadata": {"name": f"volume-{number}"},
            "spec": {
                "storageClassName": "standard",
                "capacity": {"storage": "100Gi"},
                "accessModes": ["ReadWriteOnce", "ReadWriteMany"],
                "local": {"path": str(path)},
                "nodeAffinity": {"required": {"nodeSelectorTerms": [{"matchExpressions": [here]}]}},
            },
        }


def make_cgroups(name: str) -> list[Path]:
    """Create a control group in each hierarchy of version 1, for the node and all its processes."""
    hierarchies = [path for path in Path("/sys/fs/cgroup").iterdir() if (path / "cgroup.procs").exists()]
    assert hierarchies, "a cluster is started here with control groups of version 1 only; let KUBECONFIG name one"
    groups = [hierarchy / name for hierarchy in hierarchies if not hierarchy.is_symlink()]
    for group in groups:
        group.mkdir()
        for setting in ("cpuset.cpus", "cpuset.mems"):  # empty at first, which would keep processes from joining
            if (group / setting).exists():
                (group / setting).write_text((group.parent / setting).read_text())
    return groups


def remove_cgroups(groups: list[Path]) -> None:
    """Remove the groups, the innermost first, after their processes have ended."""
    for root in groups:
        for group in sorted((path for path in root.rglob("*") if path.is_dir()), reverse=True):
            group.rmdir()
        root.rmdir()

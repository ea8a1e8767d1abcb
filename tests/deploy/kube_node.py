"""A Kubernetes cluster of one node, for the tests: etcd, the control plane, containerd, kubelet and kube-proxy.

Runs as the first process of PID, mount, network and control group namespaces of its own (started by
:mod:`tests.deploy.kube_cluster`), which end with it: no container, shim, mount, address or iptables rule is left. It stops
at the end of its standard input, and prints ``ready`` once the node is.
"""

import json
import os
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import TextIO

NODE, NODE_IP, PODS, SERVICES = "node", "10.123.0.1", "10.124.0.0/24", "10.125.0.0/16"
SERVER = f"https://{NODE_IP}:6443"
START_SECONDS = 300
CNI_PLUGINS = Path("/usr/lib/cni")
PAUSE_IMAGE = "localhost/pause:1"

# A kubelet sets these, and does not start if that fails. It finds them set in private files; the machine's settings stay
# unchanged.
SYSCTLS = {
    "vm/overcommit_memory": 1,
    "vm/panic_on_oom": 0,
    "kernel/panic": 10,
    "kernel/panic_on_oops": 1,
    "kernel/keys/root_maxkeys": 1_000_000,
    "kernel/keys/root_maxbytes": 25_000_000,
}
# Paths that are built into these programs.
PRIVATE = ("/run", "/var/log", "/var/lib/cni")


def run(*command: str | Path) -> None:
    subprocess.run(command, check=True)


def isolate(folder: Path) -> None:
    """Give the namespaces an address, a route and private copies of the directories and settings that would be shared."""
    run("ip", "link", "set", "lo", "up")
    run("ip", "link", "add", "node0", "type", "bridge")
    run("ip", "address", "add", f"{NODE_IP}/32", "dev", "node0")
    run("ip", "link", "set", "node0", "up")
    run("ip", "route", "add", "default", "dev", "node0")  # so that the node itself can reach a Service's address
    mount_cgroups()
    for path in PRIVATE:
        Path(path).mkdir(parents=True, exist_ok=True)
        run("mount", "-t", "tmpfs", "tmpfs", path)
    for name in ("containerd", "etcd"):  # in memory, some 4 GB: fast, and removed at once
        (folder / name).mkdir()
        run("mount", "-t", "tmpfs", "tmpfs", folder / name)
    for name, value in SYSCTLS.items():
        file = folder / "sysctl" / name
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text(f"{value}\n")
        run("mount", "--bind", file, Path("/proc/sys") / name)


def mount_cgroups() -> None:
    """Mount the control groups again, so that they show only the node's."""
    for line in Path("/proc/self/mounts").read_text().splitlines():
        device, path, kind, options, *_ = line.split()
        if kind in ("cgroup", "cgroup2"):
            name = next((option for option in options.split(",") if option.startswith("name=")), None)
            controllers = Path(path).name if kind == "cgroup" else "rw"
            run("umount", path)
            run("mount", "-t", kind, "-o", f"none,{name}" if name else controllers, device, path)


def write_credentials(folder: Path) -> None:
    """Write the credentials of one administrator, which the components use too; the API server signs its own certificate."""
    (folder / "tokens.csv").write_text("administrator,administrator,1,system:masters\n")
    run("openssl", "genrsa", "-out", folder / "accounts.key", "2048")
    (folder / "kubeconfig").write_text(
        json.dumps(
            {
                "apiVersion": "v1",
                "kind": "Config",
                "clusters": [{"name": "test", "cluster": {"server": SERVER, "insecure-skip-tls-verify": True}}],
                "users": [{"name": "administrator", "user": {"token": "administrator"}}],
                "contexts": [{"name": "test", "context": {"cluster": "test", "user": "administrator"}}],
                "current-context": "test",
            }
        )
    )


def write_runtime(folder: Path) -> None:
    """Write containerd's configuration, and a network in which each pod has an address that the node routes to."""
    (folder / "cni").mkdir()
    addresses = {
        "type": "host-local",
        "ranges": [[{"subnet": PODS}]],
        "routes": [{"dst": "0.0.0.0/0"}],
        "dataDir": str(folder / "addresses"),
    }
    network = {"cniVersion": "0.4.0", "name": "pods", "plugins": [{"type": "ptp", "ipMasq": False, "ipam": addresses}]}
    (folder / "cni" / "pods.conflist").write_text(json.dumps(network))
    (folder / "containerd.toml").write_text(f"""
version = 2
root = "{folder}/containerd"
[grpc]
  address = "{folder}/containerd.sock"
[plugins."io.containerd.grpc.v1.cri"]
  sandbox_image = "{PAUSE_IMAGE}"
  restrict_oom_score_adj = true
  [plugins."io.containerd.grpc.v1.cri".cni]
    bin_dir = "{CNI_PLUGINS}"
    conf_dir = "{folder}/cni"
""")


def write_kubelet(folder: Path) -> None:
    none_left = dict.fromkeys(("memory.available", "nodefs.available", "nodefs.inodesFree", "imagefs.available"), "0%")
    configuration = {
        "apiVersion": "kubelet.config.k8s.io/v1beta1",
        "kind": "KubeletConfiguration",
        "authentication": {"anonymous": {"enabled": True}, "webhook": {"enabled": False}},
        "authorization": {"mode": "AlwaysAllow"},
        "cgroupsPerQOS": False,
        "enforceNodeAllocatable": [],
        "failSwapOn": False,
        "evictionHard": none_left,
        "imageGCHighThresholdPercent": 100,
        "resolvConf": str(folder / "resolv.conf"),  # empty: names do not resolve, instead of waiting for a reply
        "volumePluginDir": str(folder / "plugins"),
    }
    (folder / "resolv.conf").touch()
    (folder / "kubelet.json").write_text(json.dumps(configuration))


def commands(programs: Path, folder: Path) -> dict[str, list[str | Path]]:
    kubeconfig = f"--kubeconfig={folder}/kubeconfig"
    return {
        "etcd": [
            "etcd", f"--data-dir={folder}/etcd", "--listen-client-urls=http://127.0.0.1:2379",
            "--advertise-client-urls=http://127.0.0.1:2379", "--listen-peer-urls=http://127.0.0.1:2380",
        ],
        "apiserver": [
            programs / "kube-apiserver", "--etcd-servers=http://127.0.0.1:2379", f"--advertise-address={NODE_IP}",
            f"--cert-dir={folder}/certificates", f"--service-cluster-ip-range={SERVICES}", "--authorization-mode=RBAC",
            f"--token-auth-file={folder}/tokens.csv", "--service-account-issuer=https://kubernetes.default.svc",
            f"--service-account-key-file={folder}/accounts.key", "--allow-privileged",
            f"--service-account-signing-key-file={folder}/accounts.key",
            "--kubelet-preferred-address-types=InternalIP",  # the node's name does not resolve
        ],
        "controller-manager": [
            programs / "kube-controller-manager", kubeconfig, "--leader-elect=false",
            f"--service-account-private-key-file={folder}/accounts.key", f"--cert-dir={folder}/certificates",
            f"--root-ca-file={folder}/certificates/apiserver.crt",
        ],
        "scheduler": [
            programs / "kube-scheduler", kubeconfig, "--leader-elect=false", f"--cert-dir={folder}/certificates",
        ],
        "containerd": ["containerd", f"--config={folder}/containerd.toml"],
        "kubelet": [
            programs / "kubelet", kubeconfig, f"--config={folder}/kubelet.json", f"--root-dir={folder}/kubelet",
            f"--cert-dir={folder}/kubelet-certificates", f"--hostname-override={NODE}", f"--node-ip={NODE_IP}",
            "--container-runtime=remote", f"--container-runtime-endpoint=unix://{folder}/containerd.sock",
        ],
        # The connection limits are the machine's, not the namespace's.
        "proxy": [
            programs / "kube-proxy", kubeconfig, "--proxy-mode=iptables", f"--hostname-override={NODE}",
            f"--cluster-cidr={PODS}", "--conntrack-max-per-core=0", "--conntrack-min=0",
        ],
    }  # fmt: skip


def server_answers(folder: Path) -> bool:
    asked = ["kubectl", f"--kubeconfig={folder}/kubeconfig", "get", "--raw=/readyz"]
    return subprocess.run(asked, capture_output=True, check=False).returncode == 0


def node_is_ready(folder: Path) -> bool:
    asked = ["kubectl", f"--kubeconfig={folder}/kubeconfig", "get", "node", NODE, "--output=json"]
    answer = subprocess.run(asked, capture_output=True, text=True, check=False)
    conditions = json.loads(answer.stdout)["status"].get("conditions", []) if answer.returncode == 0 else []
    return any(condition["type"] == "Ready" and condition["status"] == "True" for condition in conditions)


class Node:
    """The node's processes, each with a log of its name."""

    def __init__(self, programs: Path, folder: Path) -> None:
        self.folder = folder
        self.commands = commands(programs, folder)
        self.processes: dict[str, subprocess.Popen[bytes]] = {}
        (folder / "logs").mkdir()

    def start(self, *names: str) -> None:
        for name in names:
            with (self.folder / "logs" / name).open("wb") as log:
                self.processes[name] = subprocess.Popen(
                    self.commands[name], stdin=subprocess.DEVNULL, stdout=log, stderr=log
                )

    def wait(self, is_so: Callable[[Path], bool]) -> None:
        deadline = time.monotonic() + START_SECONDS
        while not is_so(self.folder):
            for name, process in self.processes.items():
                if process.poll() is not None:
                    sys.exit(f"{name} ended with {process.returncode}")
            if time.monotonic() > deadline:
                sys.exit(f"after {START_SECONDS} s, not {is_so.__name__}")
            time.sleep(0.5)


def main(programs: Path, folder: Path, lease: TextIO) -> None:
    isolate(folder)
    write_credentials(folder)
    write_runtime(folder)
    write_kubelet(folder)
    node = Node(programs, folder)
    node.start("etcd", "apiserver", "containerd")
    node.wait(server_answers)  # the others exit if the server is missing
    node.start("controller-manager", "scheduler", "kubelet", "proxy")
    node.wait(node_is_ready)
    print("ready", flush=True)
    lease.read()


if __name__ == "__main__":
    main(Path(sys.argv[1]), Path(sys.argv[2]), sys.stdin)
    os._exit(0)

"""Runs at the start of every Python process that has this folder in PYTHONPATH: it attaches the simulated device.

What a bare GPU machine may lack cannot be imported in such a process: the clients of S3 and Kubernetes.
"""

import sys
from importlib.abc import MetaPathFinder

from tests.simulated_gpu import device

MISSING = ("boto3", "botocore", "kubernetes")


class _Missing(MetaPathFinder):
    def find_spec(self, fullname: str, path: object = None, target: object = None) -> None:
        if fullname.split(".")[0] in MISSING:
            raise ModuleNotFoundError(f"No module named {fullname!r}", name=fullname)


sys.meta_path.insert(0, _Missing())
if device.is_loaded():
    device.attach()

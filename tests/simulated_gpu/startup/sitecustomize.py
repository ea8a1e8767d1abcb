"""Runs at the start of every Python process that has this folder in PYTHONPATH: it attaches the simulated device.

What a bare GPU machine may lack cannot be imported in such a process: the clients of S3 and Kubernetes.
"""

import sys

from tests.simulated_gpu import device

MISSING = ("boto3", "botocore", "kubernetes")

sys.modules.update(dict.fromkeys(MISSING))  # None: as if it were not installed
if device.is_loaded():
    device.attach()

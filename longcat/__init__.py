"""The part of LongCat-Image on which the service and the trainer must agree.

It has no HTTP, no Kubernetes and no training loop, and imports neither ``service``, ``trainer`` nor ``studio``.
"""

"""What the service and the trainer must agree on about LongCat-Image, whoever runs it.

No HTTP, no Kubernetes, no training loop: this package imports neither ``service``, ``trainer`` nor ``studio``.
"""

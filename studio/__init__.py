"""The studio: a web interface to the service and to training. It calls the service over HTTP; no torch."""

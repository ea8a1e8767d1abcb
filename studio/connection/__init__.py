"""The connection to the inference service, and the studio's own service process."""

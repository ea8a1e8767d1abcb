"""The model that is checked, and its inputs."""

"""A training as a Kubernetes Job: rendered, checked, submitted, followed, cancelled."""

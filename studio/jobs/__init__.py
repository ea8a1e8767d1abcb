"""The Jobs pages: trainings here and on a cluster."""

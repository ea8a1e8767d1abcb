"""How the service behaves under load of many kinds: locust's users, thresholds, a report. ``python -m loadtest.suite``."""

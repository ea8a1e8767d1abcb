"""The load test suite: locust users, scenarios, thresholds, a report. Run it with ``python -m loadtest.suite``."""

"""The dashboard's pictures in docs: a service and a training under load, a real Prometheus, and every panel's query.

``python -m recipes.dashboard`` makes them again. The tests use the same parts: each query has to have rows.
"""

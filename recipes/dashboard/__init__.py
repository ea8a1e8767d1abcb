"""The dashboard's screenshots in docs, from a service and a training under load, a real Prometheus and every panel's query.

``python -m recipes.dashboard`` makes them again. The tests use the same parts: each query must have rows.
"""

"""Requests, adapters and measurements that the load tests share."""

"""Shared storage: one interface over directories and S3 buckets."""

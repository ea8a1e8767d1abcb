"""Training data: sources, captions, pictures, aspect buckets, the scan and its report. No torch."""

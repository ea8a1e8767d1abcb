"""OpenAI's files and batches over the storage of jobs: JSON Lines in, JSON Lines out."""

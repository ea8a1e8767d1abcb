"""Encoding of pictures to latents and of captions to embeddings, cached on disk."""

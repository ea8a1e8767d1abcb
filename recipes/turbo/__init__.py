"""The embedded model's turbo adapter: its prompts, its training and its evaluation."""

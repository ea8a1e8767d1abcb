"""One picture: its page, and what its file says about its origin."""

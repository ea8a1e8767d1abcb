"""The Generate page: drawings under way, and the gallery."""

"""The Generate page: generations under way, and the gallery."""

"""The Edit page: pictures to change, their masks, and how much of them changes."""

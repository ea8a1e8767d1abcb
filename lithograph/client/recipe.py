"""Recipes of picture files: everything that a PNG says about how it was made."""

from service.wire.picture import Recipe, recipe_in

__all__ = ["Recipe", "recipe_in"]

"""Recipes that reproduce the embedded model and its demo dataset. The product never imports them."""

"""The published models: their names, their defaults, and, beside this file, the sizes of LongCat-Image."""

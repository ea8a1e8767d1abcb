"""The tolerances of a model's qualities, measured."""

"""LoRA files of other programs: their keys, names of modules and alphas, read to the weights that are served."""

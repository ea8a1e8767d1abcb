"""The commands of trainings and datasets."""

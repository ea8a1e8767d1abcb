"""TensorBoard, MLflow and Weights & Biases: the boards on which a run is followed."""

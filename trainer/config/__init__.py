"""The configuration of a training: options, dataset options, file reading, assignments, wizard. No torch."""

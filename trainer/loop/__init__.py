"""The training loop: step, optimizer, sampler, checkpoints, interruption, several processes."""

"""Training: options, the loop, optimizers, checkpoints, and what one sees of a run."""

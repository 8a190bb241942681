"""Training: losses for one image, the step, averaged weights, checkpoints, data. Needs optax and orbax-checkpoint."""

"""The readings without gradients, as checked computations."""

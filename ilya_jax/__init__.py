"""ilya_jax: the 26 readings of "Ilya's list" as one JAX/Flax research base."""

__version__ = "0.1.0"

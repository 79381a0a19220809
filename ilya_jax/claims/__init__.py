"""Claims of the readings: what one is, how it is measured, and the evidence that is kept of it."""

from ilya_jax.claims.claim import Claim, Judged, Measured, Setting

__all__ = ["Claim", "Judged", "Measured", "Setting"]

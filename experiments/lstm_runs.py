"""Runs of configs/lstm.py that the claims in `lstm.py` ask for, and what they read off them."""

import math
from collections.abc import Sequence
from typing import Any

import numpy as np

from ilya_jax.claims.claim import Row, column
from ilya_jax.claims.trainings import Trained

CONFIG = "configs/lstm.py"
QUICK = {"mesh.data": 1, "execution.tensorboard": False}  # how runs are executed, not what they are


def job(variant: str, **changes: Any) -> tuple[str, dict[str, Any]]:
  """A run of configs/lstm.py; `__` in a field's name stands for a dot."""
  return f"{CONFIG}:{variant}", {**QUICK, **{name.replace("__", "."): value for name, value in changes.items()}}


def held_out(run: Trained, metric: str = "loss") -> tuple[list[int], list[float]]:
  """Updates and a metric on the held-out set."""
  return run.curve(metric, split="eval", name="heldout")


def mean_of(rows: Sequence[Row], name: str, **conditions: Any) -> float:
  """The mean of a field."""
  return float(np.mean(column(rows, name, **conditions)))


def first_where(steps: Sequence[int], reached: Sequence[bool]) -> float:
  """The first of the steps at which something was reached, nan where it never was."""
  return float(next((step for step, there in zip(steps, reached, strict=True) if there), math.nan))

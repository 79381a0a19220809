"""The rows of isoFLOP budgets under one count of size and compute, their noise, and the minima of every budget by every method.

Axis letters: R versions of the losses (measured, then resamples), n rows, B budgets.
"""

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

from ilya_jax.scaling import valleys
from ilya_jax.scaling.budgets import SPAN, Budgets
from ilya_jax.scaling.fitted import FittedLaw
from ilya_jax.scaling.rows import Options
from ilya_jax.scaling.surface import FlopFactor, Surface, flop_factor
from ilya_jax.scaling.table import Table
from ilya_jax.scaling.valleys import METHODS

Array = np.ndarray

FEWEST = 2  # usable budgets for an exponent


class View(NamedTuple):
  """Rows with one count of size and compute: N, D, C [n], the factor between them, the budgets' row indices, their log_c [B].

  move [n]: what brings a row's ln loss to its budget's compute (0 where the budgets are of this compute).
  """

  size: str
  compute: str
  N: Array
  D: Array
  C: Array
  factor: FlopFactor
  surface: Surface | None
  groups: Sequence[Array]
  log_c: Array
  move: Array


class Solution(NamedTuple):
  """at [R, B] ln N of the minima, loss [R, B], code [R, B] of `valleys.REASONS`."""

  at: Array
  loss: Array
  code: Array


class Noise(NamedTuple):
  """sd of a row's ln loss with its degrees of freedom (nan, 0 without any), where from; scatter about cubics; seeds: repeated cells."""

  sd: float
  dof: int
  source: str
  scatter: float
  seeds: int


def make_view(table: Table, found: Budgets, *, size: str, compute: str, law: FittedLaw | None) -> View:
  """The rows with N (or N_total) for size, and the table's C (or 6 times size times D) for compute."""
  N = table.values["N"] if size == "N" else table.columns[size].astype(float)
  D, rows = table.values["D"], np.concatenate(found.groups)
  C = table.values["C"] if compute == "C" else 6.0 * N * D
  factor = flop_factor(N[rows], D[rows], C[rows])
  surface = None if law is None else Surface(law, factor)
  log_c = np.array([np.log(C[group]).mean() for group in found.groups])
  move = np.zeros(len(N))
  for group, at in zip(found.groups, log_c, strict=True):
    if np.ptp(np.log(C[group])) > SPAN and surface is not None:
      log_n = np.log(N[group])
      move[group] = surface.log_loss(log_n, factor.log_tokens(log_n, np.full_like(log_n, at)))
      move[group] -= surface.log_loss(log_n, np.log(D[group]))
  return View(size, compute, N, D, C, factor, surface, found.groups, log_c, move)


def noise_of(view: View, loss: Array) -> Noise:
  """The noise of a row's ln loss: between seeds of one size and budget, or about a cubic in ln N in every budget."""
  seeds, seed_dof, scatter, scatter_dof, cells = 0.0, 0, 0.0, 0, 0
  for group in view.groups:
    log_n, which = np.unique(np.log(view.N[group]), return_inverse=True)
    counts = np.bincount(which)
    logs = np.log(loss[group])
    means = np.bincount(which, logs) / counts
    seeds += float(((logs - means[which]) ** 2).sum())
    seed_dof += int((counts - 1).sum())
    cells += int((counts > 1).sum())
    residuals, free = valleys.polynomial_residuals(log_n, means)
    scatter += float((counts * residuals**2).sum())
    scatter_dof += free
  about = float(np.sqrt(scatter / scatter_dof)) if scatter_dof else float("nan")
  if seed_dof:
    return Noise(float(np.sqrt(seeds / seed_dof)), seed_dof, "seeds at one size and budget", about, cells)
  return Noise(about, scatter_dof, "scatter about a cubic in ln N" if scatter_dof else "none", about, 0)


def versions(loss: Array, noise: Noise, options: Options) -> Array:
  """The losses [R, n]: as measured, then with noise, `options.bootstrap` times (not at all without a measure of noise)."""
  if not options.bootstrap or not noise.dof:
    return loss[None]
  rng = np.random.default_rng(options.seed)
  sd = noise.sd * np.sqrt(noise.dof / rng.chisquare(noise.dof, options.bootstrap))
  return np.concatenate([loss[None], loss * np.exp(sd[:, None] * rng.standard_normal((options.bootstrap, len(loss))))])


def solve(view: View, losses: Array) -> dict[str, Solution]:
  """The minima of every budget in every version of the losses [R, n], by every method; `surface` where there is one."""
  moved = losses * np.exp(view.move)
  solved = {}
  for method in METHODS:
    minima = [valleys.minimum(method, *means(view.N[group], moved[:, group])) for group in view.groups]
    at, loss, code = (np.stack(columns, axis=1) for columns in zip(*minima, strict=True))
    if method == "akima":
      for b in np.flatnonzero((code[0] == 0) & ((code[1:] == 0).sum(0) > 0)):
        usable = code[1:, b] == 0
        at[0, b], loss[0, b] = np.median(at[1:, b][usable]), np.median(loss[1:, b][usable])
    solved[method] = Solution(at, loss, code)
  if view.surface is not None:
    at, loss = view.surface.optimum(view.log_c)
    code = np.where(np.isfinite(at), valleys.USABLE, valleys.NO_MINIMUM)
    solved["surface"] = Solution(at, np.concatenate([loss[None], np.full_like(at[1:], np.nan)]), code)
  return solved


def means(N: Array, losses: Array) -> tuple[Array, Array]:
  """(ln N of the distinct sizes, the mean losses [R, sizes] over their rows)."""
  log_n, which = np.unique(np.log(N), return_inverse=True)
  member = (which[:, None] == np.arange(len(log_n))).astype(float)
  return log_n, losses @ (member / member.sum(0))


def slope(log_c: Array, values: Array, usable: Array) -> tuple[Array, Array]:
  """(slope, intercept) [R] of least squares of `values` [R, B] on log_c [B] over the usable [R, B]; nan where these are under two."""
  w, y = usable.astype(float), np.where(usable, values, 0.0)
  with np.errstate(divide="ignore", invalid="ignore"):
    count = np.where(usable.sum(1) >= FEWEST, w.sum(1), np.nan)
    x_mean, y_mean = (w @ log_c) / count, y.sum(1) / count
    x = w * (log_c - x_mean[:, None])
    found = (x * y).sum(1) / (x**2).sum(1)
  return found, y_mean - found * x_mean

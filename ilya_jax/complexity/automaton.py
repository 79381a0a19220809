"""Cups of coffee with cream above, which mix: interacting and independent particles, a stirred cup, and a tendril.

Aaronson, Carroll, Ouellette 2014, "Quantifying the Rise and Fall of Complexity in Closed Systems: The Coffee Automaton",
https://arxiv.org/abs/1405.6903, section 3 (the two models) and the appendix (independent particles); the tendril follows the
erratum of June 2014, https://scottaaronson.blog/?p=1818.

  interacting   one edge of the open grid, of E = 2 n (n - 1), is chosen uniformly; its two cells are swapped if they differ.
                Attempts are one clock, the swaps that happen are the other, which is the paper's (the same chain at other times).
  independent   n^2 / 2 particles, each of which moves one cell up, down, left or right at every step.
  stirred       our own positive control: shears of the rows and columns of a torus between spells of the interacting rule.
  tendril       a tip walks in the coffee and leaves cream behind, taken from the top, while the cup mixes.

Attempts are sequential by definition. `swap_in_turn` gives the very same cells as one attempt after another, but carries out
together all those that are the first, of those that remain, at both of their cells.

Axes: R replicas (one for each seed), N cells along a side, S snapshots, M attempts.

Deviations: the paper gives the independent particles no wall; here a move out of the grid is cancelled, since on the torus of
its appendix cream leaks through the top as well.
"""

from collections.abc import Iterator, Sequence
from typing import NamedTuple

import numpy as np

from ilya_jax.errors import UserError

Array = np.ndarray

_SHARE, _LEAST = (
  8,
  2000,
)  # attempts carried out at a time: the 8th part of the edges, so that few wait for one another, or
# 2000 in all cups, so that the arrays are long. Results do not depend on it.
_STREAMS = {"interacting": 0, "independent": 1, "stirred": 2, "tendril": 3}


class Trajectory(NamedTuple):
  """times: int64 [S], in attempts, steps or macro-steps. swaps: int64 [S, R], made until then. pictures: uint16 [S, R, N, N]."""

  times: Array
  swaps: Array
  pictures: Array


def start(n: int) -> Array:
  """The cup before mixing, uint8 [N, N]: rows of cream (1) above as many of coffee (0). Raises UserError for an odd n."""
  if n < 2 or n % 2:
    raise UserError(f"a cup of {n} x {n} cells", "an even number of cells along a side, 2 or more", "n")
  return np.repeat(np.arange(n) < n // 2, n).reshape(n, n).astype(np.uint8)


def edges(n: int) -> tuple[Array, Array]:
  """The two cells of every edge of the open grid, row by row, int64 [E] each, E = 2 n (n - 1)."""
  cells = np.arange(n * n).reshape(n, n)
  return (
    np.concatenate([cells[:, :-1].ravel(), cells[:-1].ravel()]),
    np.concatenate([cells[:, 1:].ravel(), cells[1:].ravel()]),
  )


def swap_in_turn(cells: Array, one: Array, other: Array, *, first: Array) -> Array:
  """Exchanges the values of the cells one[i] and other[i], for i = 0, 1, …, in place; which exchanges changed something.

  cells: flat. one, other: int64 [M]. first: int64, as long as `cells`, for scratch (it need hold nothing). Returns bool [M].
  """
  changed = np.empty(len(one), bool)
  waiting = np.arange(len(one))
  while len(waiting):
    a, b, order = one[waiting], other[waiting], np.arange(len(waiting))
    first[a] = first[b] = len(order)
    np.minimum.at(first, a, order)
    np.minimum.at(first, b, order)
    ready = (first[a] == order) & (first[b] == order)  # disjoint pairs, with nothing before them
    a, b = a[ready], b[ready]
    left, right = cells[a], cells[b]
    cells[a], cells[b] = right, left
    changed[waiting[ready]] = left != right
    waiting = waiting[~ready]
  return changed


class Mixer:
  """R cups that mix by the interacting rule, each with its own stream of attempts: a seed gives the same in any company.

  cells: uint8 [R, N, N], the cups. attempts: of each cup so far. swaps: int64 [R].
  """

  def __init__(self, n: int, seeds: Sequence[int], *, stream: str = "interacting"):
    self.cells = np.tile(start(n), (len(seeds), 1, 1))
    self.swaps = np.zeros(len(seeds), np.int64)
    self.attempts = 0
    self.generators = [_generator(seed, n, stream=stream) for seed in seeds]
    self._edges = edges(n)
    self._offsets = n * n * np.arange(len(seeds))
    self._first = np.empty(self.cells.size, np.int64)

  def mix(self, attempts: int) -> None:
    """Makes so many attempts in each cup."""
    count = len(self._edges[0])
    block = max(count // _SHARE, min(count, _LEAST // len(self.generators)), 1)
    for begin in range(0, attempts, block):
      size = min(block, attempts - begin)
      drawn = np.stack([rng.integers(0, count, size) for rng in self.generators], axis=1)  # [M, R]
      one, other = ((end[drawn] + self._offsets).ravel() for end in self._edges)
      changed = swap_in_turn(self.cells.reshape(-1), one, other, first=self._first)
      self.swaps += changed.reshape(size, -1).sum(axis=0)
    self.attempts += attempts


def _generator(seed: int, n: int, *, stream: str) -> np.random.Generator:
  return np.random.Generator(np.random.Philox(key=np.asarray([seed, 16 * n + _STREAMS[stream]], np.uint64)))


def log_times(last: int, *, count: int) -> Array:
  """At most `count` + 1 times from 0 to `last`: 0, and whole numbers that grow by a constant factor, int64."""
  return np.unique(np.concatenate([[0], np.round(np.geomspace(1, last, count))]).astype(np.int64))


def interacting(n: int, times: Array, *, seeds: Sequence[int]) -> Trajectory:
  """Cups of swapping neighbours; times: attempts, rising."""
  mixer = Mixer(n, seeds)
  swaps, pictures = [], []
  for time in times:
    mixer.mix(int(time) - mixer.attempts)
    swaps.append(mixer.swaps.copy())
    pictures.append(mixer.cells.astype(np.uint16))
  return Trajectory(np.asarray(times, np.int64), np.stack(swaps), np.stack(pictures))


def independent(n: int, times: Array, *, seeds: Sequence[int]) -> Trajectory:
  """Particles that do not see one another; times: steps, rising. Pictures hold particles a cell; `swaps` is zero."""
  made = [list(_independent_pictures(n, times, _generator(seed, n, stream="independent"))) for seed in seeds]
  pictures = np.stack([np.stack(each) for each in made], axis=1)
  return Trajectory(np.asarray(times, np.int64), np.zeros(pictures.shape[:2], np.int64), pictures)


def _independent_pictures(n: int, times: Array, rng: np.random.Generator) -> Iterator[Array]:
  position = np.stack(np.nonzero(start(n))).astype(np.int32)  # [2, particles]: row, column
  each, step = np.arange(position.shape[1]), 0
  for time in times:
    while step < time:
      direction = rng.integers(0, 4, len(each), np.uint8)
      axis = direction >> 1
      moved = position[axis, each] + ((direction & 1).astype(np.int32) * 2 - 1)
      position[axis, each] = np.clip(moved, 0, n - 1)  # a move out of the grid is cancelled
      step += 1
    yield np.bincount(position[0] * n + position[1], minlength=n * n).reshape(n, n).astype(np.uint16)


def shear(cells: Array, shifts: Array) -> Array:
  """Rolls row r of each cup by shifts[r] cells to the right, on the torus: cells [R, N, N], shifts int [R, N]."""
  n = cells.shape[-1]
  source = (np.arange(n) - shifts[..., None]) % n  # [R, N, N]
  return np.take_along_axis(cells, source, axis=-1)


def stirred(n: int, macro_steps: int, *, seeds: Sequence[int], amplitude: float, attempts: int) -> Trajectory:
  """A cup that is stirred: in a macro-step, rows are rolled by A sin(2 π r / n + φ), then columns by the like with another φ.

  amplitude: A, in cells. attempts: of the interacting rule after it. A snapshot at every macro-step, the start included.
  """
  mixer = Mixer(n, seeds, stream="stirred")
  angle = 2 * np.pi * np.arange(n) / n
  swaps, pictures = [mixer.swaps.copy()], [mixer.cells.astype(np.uint16)]
  for _ in range(macro_steps):
    phases = np.stack([rng.uniform(0, 2 * np.pi, 2) for rng in mixer.generators])  # [R, 2]
    shifts = np.round(amplitude * np.sin(angle + phases[..., None])).astype(np.int64)  # [R, 2, N]
    rolled = shear(mixer.cells, shifts[:, 0])
    mixer.cells[:] = shear(rolled.swapaxes(1, 2), shifts[:, 1]).swapaxes(1, 2)
    mixer.mix(attempts)
    swaps.append(mixer.swaps.copy())
    pictures.append(mixer.cells.astype(np.uint16))
  return Trajectory(np.arange(macro_steps + 1), np.stack(swaps), np.stack(pictures))


def tendril(n: int, times: Array, *, seeds: Sequence[int], attempts: int) -> Trajectory:
  """A tip that walks uniformly among its neighbours in the lower half, from the middle, and leaves cream behind.

  Where it enters a cell of coffee, that becomes cream and the first cell of cream, row by row from the top, becomes coffee.
  times: moves of the tip, rising. attempts: of the interacting rule after each move.
  """
  mixer = Mixer(n, seeds, stream="tendril")
  tips = np.full((len(seeds), 2), n // 2)
  swaps, pictures, moves = [], [], 0
  for time in times:
    while moves < time:
      for tip, cup, rng in zip(tips, mixer.cells, mixer.generators, strict=True):
        _move_tip(tip, cup, rng)
      mixer.mix(attempts)
      moves += 1
    swaps.append(mixer.swaps.copy())
    pictures.append(mixer.cells.astype(np.uint16))
  return Trajectory(np.asarray(times, np.int64), np.stack(swaps), np.stack(pictures))


def _move_tip(tip: Array, cup: Array, rng: np.random.Generator) -> None:
  """Moves the tip [2] in place, and exchanges a cell of cream for the coffee that it enters."""
  n = len(cup)
  around = tip + np.array([[-1, 0], [1, 0], [0, -1], [0, 1]])
  inside = around[(around[:, 0] >= n // 2) & (around < n).all(axis=1) & (around[:, 1] >= 0)]
  tip[:] = inside[rng.integers(0, len(inside))]
  if cup[tip[0], tip[1]] == 0:
    cup.reshape(-1)[np.argmax(cup)] = 0
    cup[tip[0], tip[1]] = 1


def interacting_mean(n: int, times: Array) -> Array:
  """Expected cream of each row after so many attempts, float64 [S, N]: (I - L / E)^t p_0, L the path's Laplacian.

  Exact: an edge is chosen with probability 1 / E and exchanges the means of its ends, and columns are alike.
  """
  return _mean_profile(n, times, rate=1 / (2 * n * (n - 1)))


def independent_mean(n: int, times: Array) -> Array:
  """Expected particles a cell of each row after so many steps, float64 [S, N]: up and down with 1/4 each, where they can."""
  return _mean_profile(n, times, rate=1 / 4)


def _mean_profile(n: int, times: Array, *, rate: float) -> Array:
  """(I - rate L)^t p_0 by the eigenvectors of the path's Laplacian, cosines with eigenvalues 2 - 2 cos(π k / n)."""
  k = np.arange(n)
  modes = np.cos(np.pi * k[:, None] * (k + 0.5) / n)  # [modes, N]
  modes /= np.linalg.norm(modes, axis=1, keepdims=True)
  decay = 1 - rate * (2 - 2 * np.cos(np.pi * k / n))
  powers = decay ** np.asarray(times, np.float64)[:, None]  # [S, modes]
  profile = (powers * (modes @ start(n)[:, 0].astype(np.float64))) @ modes
  return np.clip(profile, 0.0, 1.0)  # but for rounding it is there already


def deviation_bound(side: int, *, parts: int) -> float:
  """2 exp(-L^2 / (3 G^2)): the chance, at most, that a square of L x L cells holds L^2 / G more or less than expected.

  side: L, in cells. parts: G. Chernoff's bound for independent particles (appendix), expected at most one a cell; by
  negative dependence (Liggett 2009, the erratum) for the interacting ones too.
  """
  return float(min(1.0, 2 * np.exp(-(side**2) / (3 * parts**2))))

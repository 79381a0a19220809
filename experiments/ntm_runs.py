"""Runs of configs/ntm.py that the claims in `ntm.py` ask for, and what they read off them: costs, traces, write locations."""

import math
from collections.abc import Mapping, Sequence
from typing import Any

import jax
import numpy as np
from scipy import stats

from ilya_jax.claims import Setting
from ilya_jax.claims.claim import Row, column
from ilya_jax.claims.trainings import Trained
from ilya_jax.config import load_config
from ilya_jax.data.bit_sequences import Sizes, cost_in_bits, find_problem, predictions
from ilya_jax.models import ntm
from ilya_jax.models.ntm import Shown
from ilya_jax.train.load import Loaded
from ilya_jax.train.loop import prepare

Array = np.ndarray
Runs = dict[tuple[str, int], Trained]
Curve = tuple[list[float], list[float]]

CONFIG = "configs/ntm.py"
QUICK = {"mesh.data": 1, "execution.tensorboard": False}  # how runs are executed, not what they are
NETS = {"ntm": "NTM, LSTM controller", "ff": "NTM, feed-forward controller", "lstm": "LSTM"}

# What the comparison of sequences changes of copy_small.
LONGER = {"data.length": (1, 10), "data.tests": (), "steps": 15_000}
SIMULATED = 20_000


def job(variant: str, seed: int, changes: Mapping[str, Any] | None = None) -> tuple[str, dict[str, Any]]:
  """A run of configs/ntm.py."""
  return f"{CONFIG}:{variant}", {**QUICK, "seed": seed, **(changes or {})}


def trained(
  setting: Setting, task: str, nets: Sequence[str] = tuple(NETS), changes: Mapping[str, Mapping[str, Any]] | None = None
) -> Runs:
  """Runs of a task with every net and seed, in its small form at small scale: (net, seed) -> run. changes: net -> fields."""
  form = f"{task}_small" if setting.scale == "small" else task
  jobs = {
    f"{net} {seed}": job(f"{form}_{net}", seed, (changes or {}).get(net)) for net in nets for seed in setting.seeds
  }
  runs = setting.train(jobs)
  return {(net, seed): runs[f"{net} {seed}"] for net in nets for seed in setting.seeds}


def rows_by_size(runs: Runs, field: str, sizes: Sequence[int]) -> list[Row]:
  """A row for each run and size of its test sets, as length=10: the cost in bits a sequence, and the share of wrong bits."""
  return [
    {
      "seed": seed, "net": NETS[net], field: size, "bits": run.evaluation(f"{field}={size}", "bits"),
      "wrong": run.evaluation(f"{field}={size}", "wrong"),
    }
    for (net, seed), run in runs.items() for size in sizes
  ]  # fmt: skip


def learning_curves(runs: Runs) -> dict[str, list[Curve]]:
  """Held-out cost in bits a sequence against thousands of training sequences: name of the net -> a curve for each seed."""
  curves: dict[str, list[Curve]] = {}
  for (net, _), run in runs.items():
    steps, bits = run.curve("bits", split="eval", name="heldout")
    thousands = [step * run.config.batch_size / 1000 for step in steps]
    curves.setdefault(NETS[net], []).append((thousands, bits))
  return curves


def sequences_below(curve: Curve, bits: float) -> float:
  """Thousands of sequences after which the cost is below `bits` for the first time; inf where it never is."""
  return next((thousands for thousands, cost in zip(*curve, strict=True) if cost < bits), math.inf)


def means(rows: Sequence[Row], name: str, **conditions: Any) -> dict[str, float]:
  """Net -> the mean of a field over its seeds."""
  nets = dict.fromkeys(str(row["net"]) for row in rows)
  return {net: float(np.mean(column(rows, name, net=net, **conditions))) for net in nets}


def sequences(loaded: Loaded, splits: Sequence[str]) -> dict[str, Array]:
  """The first sequence of each held-out set as one batch, with zeros after the ends of the shorter ones."""
  batches = [loaded.source.batch(0, split=split) for split in splits]
  longest = max(batch["asked"].shape[1] for batch in batches)

  def padded(leaf: Array) -> Array:
    return np.pad(leaf, [(0, longest - leaf.shape[0]), *[(0, 0)] * (leaf.ndim - 1)])

  return {part: np.stack([padded(np.asarray(batch[part])[0]) for batch in batches]) for part in batches[0]}


def probabilities(loaded: Loaded, batch: Mapping[str, Array]) -> Array:
  """The probability of a 1 that a net gives to every bit of a batch, [B, T, K]."""
  assert loaded.task.predict is not None
  return np.asarray(jax.jit(lambda p, b: jax.nn.sigmoid(loaded.task.predict(p, {}, b)))(loaded.params, dict(batch)))


def traced(loaded: Loaded, inputs: Array) -> tuple[Array, Shown]:
  """Probabilities [B, T, K] and what each step of a machine shows, [T, B, ...], for inputs [B, T, I]."""
  net = ntm.from_config(loaded.config, outputs=loaded.source.info["outputs"])
  logits, shown = jax.jit(lambda p, x: net.apply({"params": p}, x, method="trace"))(loaded.params, inputs)
  return np.asarray(jax.nn.sigmoid(logits)), Shown(*(np.asarray(leaf) for leaf in shown))


def write_locations(shown: Shown, read_heads: int, steps: int) -> Array:
  """The row on which each write head's weighting is largest, at the first `steps` steps: [steps, B, W]."""
  return np.asarray(shown.weights)[:steps, :, read_heads:].argmax(-1)


def locations_by_priority(priorities: Array, locations: Array) -> tuple[int, float, float, float]:
  """The write head whose location is closest to linear in the priority: (head, r^2, slope, intercept).

  priorities [steps, B], locations [steps, B, W]; a head that never moves has r^2 = 0.
  """
  found = []
  for head in range(locations.shape[-1]):
    rows = locations[..., head].ravel().astype(float)
    if np.ptp(rows) == 0:
      found.append((head, 0.0, 0.0, float(rows[0])))
      continue
    line = stats.linregress(priorities.ravel(), rows)
    found.append((head, float(line.rvalue**2), float(line.slope), float(line.intercept)))
  return max(found, key=lambda one: one[1])


def untrained(net: str, seed: int) -> dict[str, float]:
  """Cost of a small net as drawn on up to 10 vectors, and that of guessing, on the held-out set."""
  changes = {**job("", seed)[1], **LONGER, "eval.examples": 256}
  task, source, _ = prepare(load_config(f"configs/ntm.py:copy_small_{net}", changes))

  def cost():
    batch = source.batch(0, split="heldout")
    params = task.init(jax.random.key(seed), batch)["params"]
    _, (metrics, _) = task.loss(params, {}, batch, jax.random.key(0), train=False)
    total, weight = metrics["bits"]
    return total / weight, 4 * batch["asked"].sum() / batch["asked"].shape[0]

  bits, guess = jax.jit(cost, compiler_options={"xla_backend_optimization_level": 0})()  # soon compiled, run once
  return {"bits": float(bits), "guess": float(guess)}


def right_answers(seed: int) -> float:
  """Share of 256 sequences whose answer is the item after that which is asked for, read off the inputs step by step."""
  sizes = Sizes(bits=6, item_count=(2, 6), item_length=3)
  draw = jax.jit(find_problem("recall", sizes).draw, static_argnums=1)
  batch = {part: np.asarray(leaf) for part, leaf in draw(jax.random.key(seed), 256).items()}
  right = 0
  for inputs, targets, asked in zip(*(batch[part] for part in ("inputs", "targets", "asked")), strict=True):
    items = [inputs[k + 1 : k + 4, :6] for k in np.flatnonzero(inputs[:, 6])]
    begin, end = np.flatnonzero(inputs[:, 7])
    query, answer = inputs[begin + 1 : end, :6], targets[asked > 0]
    right += any((a == query).all() and (b == answer).all() for a, b in zip(items, items[1:], strict=False))
  return right / 256


def sorted_answers(seed: int) -> dict[str, float]:
  """Of 64 sequences to sort: the share whose answers fall by priority, and what a line explains of locations of two kinds.

  r_squared: of the row nearest to a linear function of the priority; r_squared_random: of rows drawn at random.
  """
  sizes = Sizes()
  draw = jax.jit(find_problem("sort", sizes).draw, static_argnums=1)
  batch = {part: np.asarray(leaf) for part, leaf in draw(jax.random.key(seed), 64).items()}
  shown, priorities = batch["inputs"][:, : sizes.vectors, : sizes.bits], batch["inputs"][:, : sizes.vectors, sizes.bits]
  order = np.argsort(-priorities, axis=1)[:, : sizes.answered]
  answers = np.stack([targets[asked > 0] for targets, asked in zip(batch["targets"], batch["asked"], strict=True)])
  right = (np.take_along_axis(shown, order[..., None], axis=1) == answers).all((1, 2))
  rows = np.random.default_rng(seed).integers(128, size=priorities.T.shape)
  linear = np.rint(63.5 * (1 + priorities.T)).astype(int)
  by_line, by_chance = (locations_by_priority(priorities.T, each[..., None])[1] for each in (linear, rows))
  return {"right": float(right.mean()), "r_squared": by_line, "r_squared_random": by_chance}


def best_cost(seed: int, steps: int, history: int) -> dict[str, float]:
  """Cost of the best predictor, mean over `SIMULATED` sequences, and its standard error."""
  draw = jax.jit(find_problem("ngrams", Sizes(length=(steps, steps), history=history)).draw, static_argnums=1)
  bits = np.asarray(draw(jax.random.key(seed), SIMULATED)["targets"])[..., 0]
  costs = cost_in_bits(predictions(bits, history), bits)
  return {"steps": steps, "bits": float(costs.mean()), "error": float(costs.std() / SIMULATED**0.5)}

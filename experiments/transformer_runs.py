"""Runs of configs/transformer.py that the claims in `transformer.py` ask for, and what they read off them."""

import functools
import math
from collections.abc import Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from ilya_jax.claims import Setting
from ilya_jax.claims.claim import Row, column
from ilya_jax.claims.trainings import Trained
from ilya_jax.data.copying import copies
from ilya_jax.tasks import translation
from ilya_jax.train.metrics import read_rows

CONFIG = "configs/transformer.py"
QUICK = {"mesh.data": 1, "execution.tensorboard": False}  # how runs are executed, not what they are
TESTED = 256  # fresh strings of each length
_FRESH_SEED = 2020  # of the strings that trained models are tested with
Net = tuple[str, Mapping[str, Any]]  # variant, or path:variant, and changes


def trained(setting: Setting, nets: Mapping[str, Net], **options: Any) -> dict[tuple[str, int], Trained]:
  """Runs of name -> (variant, changes) with every seed: (name, seed) -> run."""
  jobs = {
    f"{name} {seed}": (variant if ":" in variant else f"{CONFIG}:{variant}", {**QUICK, "seed": seed, **changes})
    for name, (variant, changes) in nets.items() for seed in setting.seeds
  }  # fmt: skip
  runs = setting.train(jobs, **options)
  return {(name, seed): runs[f"{name} {seed}"] for name in nets for seed in setting.seeds}


def held_out_rows(runs: Mapping[tuple[str, int], Trained], *metrics: str, split: str = "heldout") -> list[Row]:
  """A row for each run with metrics of a held-out set at its end."""
  return [
    {"seed": seed, "net": name, **{metric: run.evaluation(split, metric) for metric in metrics}}
    for (name, seed), run in runs.items()
  ]


def copied(run: Trained, lengths: Sequence[int]) -> list[tuple[float, float]]:
  """Of fresh strings of each length: the share that is copied without a fault, and that of the target's tokens (END among
  them) that stand at their place in what greedy search writes."""
  loaded = run.load()
  model = translation.make_model(loaded.config, loaded.source)
  search = jax.jit(functools.partial(_greedy, model, settings=loaded.config.eval))
  found = []
  for length in lengths:
    batch = copies(
      jax.random.fold_in(jax.random.key(_FRESH_SEED), length), rows=TESTED, symbols=loaded.config.data.symbols,
      shortest=length, longest=length,
    )  # fmt: skip
    written, target = search(loaded.params, batch["source"]), batch["target"]
    right = np.asarray(written)[:, : length + 1] == np.asarray(target)[:, 1:]
    found.append((float(translation.exact(written, target).mean()), float(right.mean())))
  return found


def _greedy(model: Any, params: Any, sources: jax.Array, *, settings: Any) -> jax.Array:
  return translation.search(model, params, sources, settings=settings).tokens


def attention_maps(trained_run: Trained, length: int) -> tuple[dict[str, np.ndarray], list[str], list[str]]:
  """The last decoder layer's weights on the source of a fresh string, by head, with the tokens of both sides."""
  loaded = trained_run.load()
  model = translation.make_model(loaded.config, loaded.source)
  batch = copies(
    jax.random.key(_FRESH_SEED), rows=1, symbols=loaded.config.data.symbols, shortest=length, longest=length
  )
  target = batch["target"][:, :-1]
  run = jax.jit(functools.partial(model.apply, train=False, mutable=["attention"]))
  _, sown = run({"params": loaded.params}, batch["source"], target)
  own = sown["attention"][f"decoder_{model.n_layers - 1}"]["cross_attention"]["weights"][0]
  maps = {f"head {k + 1}": np.asarray(own[0, k]) for k in range(own.shape[1])}
  return maps, [_symbol(t) for t in target[0].tolist()], [_symbol(t) for t in batch["source"][0].tolist()]


def _symbol(token: int) -> str:
  return {0: "", 1: "begin", 2: "end"}.get(token, str(token - 3))


def by_time(run: Trained) -> tuple[list[float], list[float]]:
  """Seconds of training and held-out nll, nats per token, at every evaluation."""
  rows = [row for row in read_rows(run.workdir / "metrics.jsonl") if row["split"] == "eval"]
  return [float(row["wall_s"]) for row in rows], [float(row["nll"]) for row in rows]


def at_time(curve: tuple[Sequence[float], Sequence[float]], seconds: float) -> float:
  """The last value of a curve up to a time, nan where there is none."""
  return next((value for when, value in zip(*map(reversed, curve), strict=True) if when <= seconds), math.nan)


def shown(rows: Sequence[Row], name: str, *, by: str = "net", digits: int = 3) -> str:
  """The means by net."""
  nets = dict.fromkeys(row[by] for row in rows)
  return ", ".join(f"{net} {np.mean(column(rows, name, **{by: net})):.{digits}g}" for net in nets)


def median(rows: Sequence[Row], name: str, **conditions: Any) -> float:
  """The median of a field; nan where a value is missing."""
  values = column(rows, name, **conditions)
  return float(np.median(values)) if values else math.nan


def in_every_seed(rows: Sequence[Row], name: str, *, lower: str, higher: str) -> list[bool]:
  """By seed, whether the field is lower in one net than in the other."""
  pairs = zip(column(rows, name, net=lower), column(rows, name, net=higher), strict=True)
  return [one < other for one, other in pairs]


def random_parameters(init: Any, *inputs: Any) -> Any:
  """Parameters of the shapes that `init` would make of these inputs, normal with deviation .3: nothing has to be compiled."""
  shapes = jax.eval_shape(functools.partial(init, jax.random.key(0)), *inputs)
  leaves, tree = jax.tree.flatten(shapes)
  rng = np.random.default_rng(0)
  return tree.unflatten([rng.normal(0.0, 0.3, leaf.shape).astype(np.float32) for leaf in leaves])


def tokens_of(length: int, rows: int = 2) -> jax.Array:
  """Some tokens [rows, length] without specials."""
  return jnp.asarray(np.random.default_rng(0).integers(3, 19, (rows, length)), jnp.int32)

"""Runs, texts and tables of the claims in `scaling_laws.py`.

Language models on the standard library's source, byte by byte, in contexts of 128, eight sequences a step: the form, batch and learning
rates of `configs/sweeps/lm_full.py`, whose committed table serves the claims that need losses by size and length alone. At tiny
scale everything is of widths 8 and 16, one layer, contexts of 32, on some of the library's modules.

Axis letters: T positions of a context, B sequences.
"""

import csv
import math
import sysconfig
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from ilya_jax.claims import Setting
from ilya_jax.claims.trainings import Trained
from ilya_jax.config import load_config
from ilya_jax.data.corpora import is_held_out
from ilya_jax.data.tokens import load_corpus
from ilya_jax.errors import UserError
from ilya_jax.models import transformer_lm
from ilya_jax.scaling import command
from ilya_jax.scaling.table import Table, read_table
from ilya_jax.train.load import load_run

Array = np.ndarray
Jobs = dict[str, tuple[str, dict[str, Any]]]

ROOT = Path(__file__).parents[1]
SWEEP = "configs/sweeps/lm_full.py"
COMMITTED = ROOT / "experiments" / "results" / "lm_full" / "cells.csv"
TRANSFORMER, LSTM = "configs/transformer_lm.py:tiny", "configs/lstm_lm.py:tiny"
TOKENS_PER_STEP = 1024
UNIFORM = math.log(256)  # nats per byte of a guess

_COMMON: dict[str, Any] = {
  "batch_size": 8, "schedule.warmup_steps": 200, "eval.tokens": 262_144, "execution.tensorboard": False, "checkpoint.keep": 1,
  "checkpoint.every_s": 30.0,
}  # fmt: skip
_TINY: dict[str, Any] = {
  "data.name": "files", "data.heldout_fraction": 0.2, "data.context": 32, "batch_size": 8, "model.n_layers": 1,
  "schedule.warmup_steps": 5, "eval.tokens": 8192, "execution.tensorboard": False, "execution.steps_per_dispatch": 10,
  "checkpoint.keep": 1, "mesh.data": 1,
}  # fmt: skip
_PAPER: dict[str, Any] = {  # as the accelerator form of the sweep
  "data.name": "tfds:c4/en", "data.context": 1024, "batch_size": 128, "data.tokenizer": "bpe", "data.vocab_size": 16_384,
  "dtype": "bfloat16", "schedule.warmup_steps": 500, "eval.tokens": 2**21, "checkpoint.every_s": 600.0, "checkpoint.keep": 1,
}  # fmt: skip
TINY_WIDTHS, TINY_STEPS = (8, 16), (20, 30, 50)


def rate(width: int) -> float:
  """The Transformer's learning rate by the rule of the sweep."""
  return float(f"{1.5e-2 * (16 / width) ** 0.75:.2e}")


def paper_rate(width: int) -> float:
  """The Transformer's at paper scale, by the rule of the sweep's accelerator form."""
  return float(f"{2e-3 * (256 / width) ** 0.5:.2e}")


def lstm_rate(width: int) -> float:
  """The LSTM's, by the rule of the demo."""
  return float(f"{2.8e-2 * (16 / width) ** 0.3:.2e}")


def job(setting: Setting, spec: str, **changes: Any) -> tuple[str, dict[str, Any]]:
  """A run at the scale; `__` in a field's name stands for a dot."""
  common = {"small": _COMMON, "paper": _PAPER}.get(setting.scale) or {
    **_TINY,
    "data.path": str(tiny_text(setting.folder)),
  }
  return spec, {**common, **{name.replace("__", "."): value for name, value in changes.items()}}


def transformer(setting: Setting, width: int, steps: int, *, seed: int, **changes: Any) -> tuple[str, dict[str, Any]]:
  """A Transformer run of the sweep's form."""
  paper = setting.scale == "paper"
  learning_rate = paper_rate(width) if paper else rate(width)
  made = {"model__d_model": width, "optim__learning_rate": learning_rate, "steps": steps, "seed": seed, **changes}
  return job(setting, "configs/transformer_lm.py" if paper else TRANSFORMER, **made)


def tiny_text(folder: Path) -> Path:
  """A folder of 40 small modules of the standard library, copied at first use."""
  place = folder / "texts" / "modules"
  if not place.is_dir():
    place.mkdir(parents=True)
    files = [file for file in sorted(Path(sysconfig.get_paths()["stdlib"]).glob("*.py")) if file.stat().st_size > 3000]
    for file in [file for file in files if file.stat().st_size < 12_000][:40]:
      (place / file.name).write_bytes(file.read_bytes())
  return place


class Cell(NamedTuple):
  """A finished run: seed, N, N_total, D tokens, C FLOP, held-out loss in nats per byte."""

  seed: int
  N: float
  N_total: float
  D: float
  C: float
  loss: float


def cell_of(run: Trained) -> Cell:
  """The cell of a run that was trained for a claim."""
  counts = transformer_lm.counts(run.config, vocab_size=256)
  units = run.config.steps * counts.units_per_step
  return Cell(
    run.config.seed, counts.n, counts.n_total, units, units * counts.flops_per_unit, run.evaluation("heldout")
  )  # fmt: skip


def grid(setting: Setting) -> list[Cell]:
  """Losses by size and length: at small scale the fitted rows of the sweep, at tiny scale six runs.

  The committed table is read; without it the sweep runs first (about an hour on two cores). At paper scale the sweep's accelerator
  form runs on C4 (three days of an H100 by formula). Raises UserError where it has none of
  the seeds.
  """
  if setting.scale == "tiny":
    return list(
      trained_cells(setting, [(w, s, seed) for seed in setting.seeds for w in TINY_WIDTHS for s in TINY_STEPS]).values()
    )
  if setting.scale == "paper":
    path = setting.folder / "lm_full_accelerator"
    _sweep(f"{SWEEP}:accelerator", path, {"data.name": "tfds:c4/en"})
  elif COMMITTED.is_file():
    path = COMMITTED
  else:
    path = setting.folder / "lm_full"
    setting.say(f"no {COMMITTED.relative_to(ROOT)}: running {SWEEP}")
    _sweep(SWEEP, path, {})
  cells = [cell for cell in cells_of(read_table([path], final_only=True), role="fit") if cell.seed in setting.seeds]
  if not cells:
    raise UserError(f"no run of the seeds {setting.seeds} in {path}", "seeds of the sweep, 0 to 2", "--seeds")
  return cells


def _sweep(spec: str, folder: Path, overrides: Mapping[str, Any]) -> None:
  """Runs what of the sweep is not done, and writes its table."""
  command.sweep(spec, folder, overrides=overrides, only=None, workers=0, pack=1, dry_run=False)


def cells_of(table: Table, *, role: str) -> list[Cell]:
  """The rows of a sweep's table that have the role."""
  kept = table.take(table.columns["role"] == role)
  labels = (kept.columns["seed"], kept.columns["N_total"])
  numbers = (kept.values["N"], kept.values["D"], kept.values["C"], kept.values["loss"])
  return [
    Cell(int(seed), float(N), float(total), float(D), float(C), float(loss))
    for seed, total, N, D, C, loss in zip(*labels, *numbers, strict=True)
  ]


def trained_cells(setting: Setting, wanted: Iterable[tuple[int, int, int]]) -> dict[tuple[int, int, int], Cell]:
  """(width, steps, seed) -> the cell of a run with the sweep's settings, trained now unless it was."""
  jobs = {f"{w} {s} {seed}": transformer(setting, w, s, seed=seed) for w, s, seed in wanted}
  made = setting.train(jobs)
  keys = {name: tuple(int(part) for part in name.split()) for name in jobs}
  return {(key[0], key[1], key[2]): cell_of(made[name]) for name, key in keys.items()}


def size_of(width: int, *, layers: int = 2) -> int:
  """N of a Transformer, equation 2.1."""
  return 12 * layers * width**2


def write_table(setting: Setting, name: str, rows: Sequence[Mapping[str, Any]]) -> Table:
  """Rows as a table of the fit toolkit, kept in the folder of the measurement."""
  path = setting.folder / "tables" / f"{name}.csv"
  path.parent.mkdir(parents=True, exist_ok=True)
  with path.open("w", newline="") as file:
    writer = csv.DictWriter(file, list(rows[0]))
    writer.writeheader()
    writer.writerows(rows)
  return read_table([path])


# Loss by position


def position_losses(run: Trained, *, tokens: int) -> Array:
  """Mean loss [T] of the prediction from the first 1 … T tokens of a held-out context, over about `tokens` tokens."""
  loaded = load_run(run.workdir, {"eval.tokens": tokens})
  predict = loaded.task.predict
  assert predict is not None

  @jax.jit
  def summed(params: Any, sequences: jax.Array) -> jax.Array:
    logits = predict(params, {}, {"tokens": sequences[:, :-1]})  # [B, T, V]
    chances = jax.nn.log_softmax(logits)
    targets = sequences[:, 1:].astype(jnp.int32)
    return -jnp.take_along_axis(chances, targets[..., None], axis=-1)[..., 0].sum(axis=0)

  total, count = np.zeros(run.config.data.context), 0
  for index in range(loaded.source.eval_batches["heldout"]):
    batch = loaded.source.batch(index, split="heldout")["tokens"]
    total += np.asarray(summed(loaded.params, jnp.asarray(batch)), np.float64)
    count += len(batch)
  return total / count


# Part of a text


def subset_folder(setting: Setting, config: Any, *, tokens: int, seed: int) -> Path:
  """A folder of text files: documents of the corpus of `config` of `tokens` bytes together, drawn by the seed, and all of its held-out
  documents, freed of what occurs in any training document, so that every subset is graded by the same text."""
  place = setting.folder / "texts" / f"{tokens}_{seed}"
  if (place / "complete").is_dir():
    return place / "complete"
  corpus = load_corpus(config.data)
  building = place / "building"
  building.mkdir(parents=True, exist_ok=True)
  ends = np.flatnonzero(np.asarray(corpus.train) == 0)  # the separator of documents
  documents = np.split(np.asarray(corpus.train), ends + 1)
  left = tokens
  for k in np.random.default_rng(seed).permutation(len(documents)):
    text = bytes(documents[k][:-1])[: left - 1]
    if left - len(text) == 2:  # what would be left is a separator without a text
      text = text[:-1]
    if text.strip():
      (building / _name(f"t{k:05d}", held_out=False, fraction=config.data.heldout_fraction)).write_bytes(text)
      left -= len(text) + 1
    if not left:
      break
  for k, text in enumerate(np.split(np.asarray(corpus.heldout), corpus.heldout_document_ends[:-1])):
    name = _name(f"h{k:05d}", held_out=True, fraction=config.data.heldout_fraction)
    (building / name).write_bytes(bytes(text[:-1]))
  return building.rename(place / "complete")


def _name(stem: str, *, held_out: bool, fraction: float) -> str:
  """A file's name that falls on the wanted side of the split; names of one stem keep their order."""
  return next(name for k in range(10_000) if is_held_out(name := f"{stem}_{k}.txt", fraction) == held_out)


def other_texts(setting: Setting) -> dict[str, dict[str, Any]]:
  """Texts of another kind: name -> what of a config makes it the one that is evaluated on.

  The topics of Python's help, in English prose, are always there; Shakespeare and the State of the Union addresses once
  `scripts/fetch_data` has fetched them.
  """
  place = setting.folder / "texts" / "help"
  if not place.is_dir():
    place.mkdir(parents=True)
    content = (Path(sysconfig.get_paths()["stdlib"]) / "pydoc_data" / "topics.py").read_bytes()
    (place / "topics.txt").write_bytes(content.replace(b"\\n", b"\n"))
  texts: dict[str, dict[str, Any]] = {
    "help": {"data.name": "files", "data.path": str(place / "topics.txt"), "data.heldout_fraction": 0.9}
  }
  for name in ("shakespeare", "state_of_the_union") if setting.scale != "tiny" else ():
    changes = {"data.name": name, "data.path": "", "data.heldout_fraction": 0.2}
    try:
      load_corpus(load_config(TRANSFORMER, changes).data)
    except UserError:
      continue
    texts[name] = changes
  return texts

"""Claims on table 3 of "Attention Is All You Need": heads (A), key width (B), size (C), dropout and label smoothing (D).

At paper scale each is the table's own: variants table3_* of configs/transformer.py, perplexity on newstest2013 ("validation").
"""

import functools
from collections.abc import Mapping, Sequence
from typing import Any

import jax
import numpy as np

from experiments import transformer_figures as figures
from experiments.transformer_runs import (
  CONFIG,
  Net,
  held_out_rows,
  in_every_seed,
  random_parameters,
  shown,
  trained,
)
from ilya_jax.claims import Judged, Measured, Setting
from ilya_jax.claims.claim import Row, column, select, verdict
from ilya_jax.config import load_config
from ilya_jax.models.transformer_layers import TransformerLayer
from ilya_jax.tasks import translation
from ilya_jax.train.loop import prepare

HEADS = (1, 2, 4, 8, 16, 32)
KEY_WIDTHS = (1, 4, 16)
SIZES: Mapping[str, tuple[int, int]] = {"2 x 32": (2, 32), "2 x 64": (2, 64), "4 x 128": (4, 128)}  # layers, width
ABOVE_ONE, ABOVE_MANY = 0.05, 0.02  # accuracy of 4 or 8 heads above that of 1 and of 32
LOST = 0.005  # token accuracy that smoothing may cost
SMALL_SET: Mapping[str, Any] = {"data.train_pairs": 2_000, "batch_size": 32, "steps": 1_000}
REGULARISED: Mapping[str, Mapping[str, Any]] = {
  "no dropout": {**SMALL_SET, "model.dropout": 0.0},
  "dropout": {**SMALL_SET, "model.dropout": 0.1},
  "smoothing": {**SMALL_SET, "model.dropout": 0.1, "smoothing.epsilon": 0.1},
}


def measure_table(setting: Setting, names: Mapping[str, str]) -> Measured:
  """Perplexities on newstest2013 of rows of table 3: name -> variant."""
  runs = trained(setting, {name: (variant, {}) for name, variant in names.items()})
  rows = held_out_rows(runs, "nll", "accuracy", split="validation")
  return Measured(
    [{**row, "perplexity": float(np.exp(row["nll"]))} for row in rows], {"table_3": figures.draw_table_3()}
  )


def lower_in_turn(rows: Sequence[Row], names: Sequence[str], field: str) -> bool:
  """Whether the mean falls from each name to the next."""
  means = [float(np.mean(column(rows, field, net=name))) for name in names]
  return bool(np.all(np.diff(means) < 0))


# A: heads


def measure_heads(setting: Setting) -> Measured:
  """Accuracy by number of heads; at tiny scale counts."""
  if setting.scale == "paper":
    names = {"1": "table3_a_h1", "4": "table3_a_h4", "8": "", "16": "table3_a_h16", "32": "table3_a_h32"}
    return measure_table(setting, names)
  if setting.scale == "tiny":
    made = {heads: prepare(load_config(f"{CONFIG}:heads", {"model.n_heads": heads}))[0] for heads in HEADS}
    seed = setting.seeds[0]
    return Measured([{"seed": seed, "net": f"{heads}", "count": task.counts.n_total} for heads, task in made.items()])
  runs = trained(setting, {f"{heads}": ("heads", {"model.n_heads": heads}) for heads in HEADS})
  rows = held_out_rows(runs, "accuracy", "loss")
  accuracy = {f"h = {heads}": column(rows, "accuracy", net=f"{heads}") for heads in HEADS}
  return Measured(rows, {"heads": figures.draw_bars(accuracy, y="accuracy (chance 1/8)"),
                         "table_3": figures.draw_table_3()})  # fmt: skip


def judge_heads(rows: Sequence[Row], scale: str) -> Judged:
  """The rule of `heads`."""
  if scale == "tiny":
    counts = sorted({int(row["count"]) for row in rows})
    return Judged(verdict(len(counts) == 1), f"{', '.join(map(str, counts))} parameters")
  if scale == "paper":
    holds = lower_in_turn(rows, ("1", "8"), "perplexity") and lower_in_turn(rows, ("32", "8"), "perplexity")
    return Judged(verdict(holds), f"perplexity by h: {shown(rows, 'perplexity')}")
  means = {heads: float(np.mean(column(rows, "accuracy", net=f"{heads}"))) for heads in HEADS}
  best = max(means[4], means[8])
  holds = best >= means[1] + ABOVE_ONE and best >= means[32] + ABOVE_MANY
  return Judged(verdict(holds), f"accuracy by h: {shown(rows, 'accuracy')}")


# B: key width


def measure_key_width(setting: Setting) -> Measured:
  """Accuracy by width of the keys; at tiny scale the counts."""
  if setting.scale == "paper":
    return measure_table(setting, {"16": "table3_b_dk16", "32": "table3_b_dk32", "64": ""})
  if setting.scale == "tiny":
    made = {width: {"model.d_k": width, "model.d_v": 16} for width in KEY_WIDTHS}
    counts = {width: prepare(load_config(f"{CONFIG}:heads", own))[0].counts.n_total for width, own in made.items()}
    return Measured([{"seed": setting.seeds[0], "net": f"{width}", "count": count} for width, count in counts.items()])
  runs = trained(setting, {f"{width}": ("heads", {"model.d_k": width, "model.d_v": 16}) for width in KEY_WIDTHS})
  rows = held_out_rows(runs, "accuracy", "loss")
  accuracy = {f"d_k = {width}": column(rows, "accuracy", net=f"{width}") for width in KEY_WIDTHS}
  return Measured(rows, {"key_width": figures.draw_bars(accuracy, y="accuracy (chance 1/8)")})


def judge_key_width(rows: Sequence[Row], scale: str) -> Judged:
  """The rule of `key_width`."""
  if scale == "tiny":
    counts = [column(rows, "count", net=f"{width}")[0] for width in KEY_WIDTHS]
    steps = [2 * 64 * 4 * (b - a) for a, b in zip(KEY_WIDTHS, KEY_WIDTHS[1:], strict=False)]
    return Judged(
      verdict(np.diff(counts).tolist() == steps), f"parameters by d_k: {', '.join(f'{c:.0f}' for c in counts)}"
    )
  if scale == "paper":
    return Judged(
      verdict(lower_in_turn(rows, ("16", "32", "64"), "perplexity")), f"perplexity by d_k: {shown(rows, 'perplexity')}"
    )
  means = [float(np.mean(column(rows, "accuracy", net=f"{width}"))) for width in KEY_WIDTHS]
  return Judged(verdict(bool(np.all(np.diff(means) > 0))), f"accuracy by d_k: {shown(rows, 'accuracy')}")


# C: size


def _language_model(layers: int, width: int, changes: Mapping[str, Any]) -> Net:
  sizes = {"model.n_layers": layers, "model.d_model": width}
  return "configs/transformer_lm.py:tiny", {**sizes, "batch_size": 16, **changes}


def measure_size(setting: Setting) -> Measured:
  """Held-out nats a byte of byte models on the English help; at tiny scale their counts."""
  if setting.scale == "paper":
    names = ("n2", "n4", "n8", "d256", "d1024", "f1024", "f4096")
    return measure_table(setting, {"base": "", **{name: f"table3_c_{name}" for name in names}})
  if setting.scale == "tiny":
    rows = []
    for name, size in SIZES.items():
      spec, changes = _language_model(*size, {"data.name": "markov"})
      rows.append({"seed": setting.seeds[0], "net": name, "count": prepare(load_config(spec, changes))[0].counts.n})
    return Measured(rows)
  text = {"data.name": "libreoffice_help", "data.context": 128, "steps": 600}
  runs = trained(setting, {name: _language_model(*size, text) for name, size in SIZES.items()})
  rows = held_out_rows(runs, "loss")
  losses = {name: column(rows, "loss", net=name) for name in SIZES}
  return Measured(
    rows, {"size": figures.draw_bars(losses, y="held-out nats a byte"), "table_3": figures.draw_table_3()}
  )


def judge_size(rows: Sequence[Row], scale: str) -> Judged:
  """The rule of `size`."""
  if scale == "tiny":
    counts = {name: column(rows, "count", net=name)[0] for name in SIZES}
    holds = all(counts[name] == 12 * layers * width**2 for name, (layers, width) in SIZES.items())
    return Judged(verdict(holds), f"{', '.join(f'{count:.0f}' for count in counts.values())} parameters")
  if scale == "paper":
    chains = (("n2", "n4", "base", "n8"), ("d256", "base", "d1024"), ("f1024", "base", "f4096"))
    holds = all(lower_in_turn(rows, chain, "perplexity") for chain in chains)
    return Judged(verdict(holds), f"perplexity: {shown(rows, 'perplexity')}")
  names = list(SIZES)
  ordered = [
    in_every_seed(rows, "loss", lower=large, higher=small) for small, large in zip(names, names[1:], strict=False)
  ]
  return Judged(verdict(all(map(all, ordered))), f"nats a byte: {shown(rows, 'loss')}")


# D: dropout and smoothing


def measure_regularised(setting: Setting, names: Sequence[str]) -> Measured:
  """Held-out nll and accuracy of the help's model on 2,000 pairs, with and without dropout and smoothing."""
  runs = trained(setting, {name: ("help", REGULARISED[name]) for name in names})
  return Measured(held_out_rows(runs, "nll", "accuracy"))


def measure_dropout(setting: Setting) -> Measured:
  """As `measure_regularised`; at tiny scale what a layer writes with two keys, in training and evaluation."""
  if setting.scale == "paper":
    return measure_table(setting, {"0": "table3_d_drop0", "0.1": "", "0.2": "table3_d_drop2"})
  if setting.scale == "small":
    measured = measure_regularised(setting, ("no dropout", "dropout"))
    losses = {name: column(measured.rows, "nll", net=name) for name in ("no dropout", "dropout")}
    return measured._replace(figures={"dropout": figures.draw_bars(losses, y="held-out nll, nats a token")})
  layer = TransformerLayer(16, 2, 8, 8, 32, crosses=False, dropout=0.1)
  x, there = np.ones((2, 5, 16), np.float32), np.ones((2, 5), np.float32)
  variables = random_parameters(functools.partial(layer.init, train=False, method="encode"), x, there)
  rows = []
  for phase, train in (("training", True), ("evaluation", False)):
    run = jax.jit(functools.partial(layer.apply, train=train, method="encode"))
    written = [np.asarray(run(variables, x, there, rngs={"dropout": jax.random.key(k)})) for k in (0, 1)]
    rows.append({"seed": setting.seeds[0], "phase": phase, "apart": float(np.abs(written[0] - written[1]).max())})
  return Measured(rows)


def judge_dropout(rows: Sequence[Row], scale: str) -> Judged:
  """The rule of `dropout`."""
  if scale == "tiny":
    training, evaluation = (column(rows, "apart", phase=phase)[0] for phase in ("training", "evaluation"))
    holds = training > 0 and evaluation == 0
    return Judged(
      verdict(holds), f"with two keys it differs by {training:.2g} in training, {evaluation:g} in evaluation"
    )
  if scale == "paper":
    return Judged(
      verdict(lower_in_turn(rows, ("0", "0.1"), "perplexity")), f"perplexity by P: {shown(rows, 'perplexity')}"
    )
  lower = in_every_seed(rows, "nll", lower="dropout", higher="no dropout")
  return Judged(verdict(all(lower)), f"held-out nll: {shown(rows, 'nll')}")


def measure_smoothing(setting: Setting) -> Measured:
  """As `measure_regularised`; at tiny scale the least smoothed loss, which is an entropy."""
  if setting.scale == "paper":
    return measure_table(setting, {"0": "table3_d_smooth0", "0.1": "", "0.2": "table3_d_smooth2"})
  if setting.scale == "small":
    return measure_regularised(setting, ("dropout", "smoothing"))
  rows = []
  for vocab_size, epsilon in ((5, 0.4), (37_000, 0.1)):
    target = np.full(vocab_size, epsilon / (vocab_size - 1))
    target[3] = 1 - epsilon
    metrics = translation.score(
      np.log(target)[None, None].astype(np.float32), np.array([[3]], np.int32), epsilon=epsilon
    )  # fmt: skip
    entropy = float(-(target * np.log(target)).sum())
    rows.append(
      {"seed": setting.seeds[0], "vocabulary": vocab_size, "loss": float(metrics["loss"][0]), "entropy": entropy}
    )
  return Measured(rows)


def judge_smoothing(rows: Sequence[Row], scale: str) -> Judged:
  """The rule of `smoothing`."""
  if scale == "tiny":
    off = max(abs(row["loss"] - row["entropy"]) for row in rows)
    return Judged(
      verdict(off < 1e-5), f"least loss {shown(rows, 'loss', by='vocabulary', digits=7)} nats by vocabulary"
    )
  if scale == "paper":
    holds = lower_in_turn(rows, ("0.2", "0.1", "0"), "perplexity")
    return Judged(verdict(holds), f"perplexity by eps: {shown(rows, 'perplexity')}")
  higher = in_every_seed(rows, "nll", lower="dropout", higher="smoothing")
  gained = float(np.mean(column(rows, "accuracy", net="smoothing")) - np.mean(column(rows, "accuracy", net="dropout")))
  found = f"held-out nll: {shown(rows, 'nll')}; token accuracy: {shown(rows, 'accuracy')}"
  return Judged(verdict(all(higher) and gained >= -LOST and bool(select(rows, net="smoothing"))), found)

"""Claims of `scaling_laws.py` that look at models: shape, positions, LSTM against Transformer, critical batch, transfer."""

import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from experiments import scaling_laws_figures as figures
from experiments import scaling_laws_runs as runs
from experiments.scaling_laws_tables import learns, try_fit
from ilya_jax.claims import Judged, Measured, Setting
from ilya_jax.claims.claim import Row, column, select, verdict
from ilya_jax.claims.trainings import Trained
from ilya_jax.config import load_config
from ilya_jax.models import transformer_lm
from ilya_jax.scaling import curves, hyperbola, steps_to_loss
from ilya_jax.scaling.counting import lstm_counts
from ilya_jax.scaling.noise_scale import noise_scale
from ilya_jax.train.evaluate import evaluate
from ilya_jax.train.load import load_run

Array = np.ndarray

# Shape: layers, width, heads

SHAPES = {
  "tiny": ((1, 8, 2), (1, 16, 2)),
  "small": ((2, 64, 2), (8, 32, 2), (32, 16, 2)),
  "paper": ((5, 912, 12), (16, 512, 8), (64, 256, 4)),
}
HEADS = {
  "small": tuple((2, 64, heads) for heads in (1, 2, 4, 8)),
  "paper": tuple((16, 512, heads) for heads in (4, 8, 16)),
}
REPORTED_ONLY = (32, 16, 2)
APART = "Runs of what was one claim, shape with heads, until it had been measured; each part is judged by its part of the rule."
SHAPE_STEPS = {"tiny": 50, "small": 2048, "paper": 8192}
RATE_WIDTH = {"tiny": 16, "small": 64, "paper": 512}  # whose learning rate all shapes take


def shape_name(shape: tuple[int, int, int]) -> str:
  """As 2 x 64, 4 heads."""
  layers, width, heads = shape
  return f"{layers} x {width}, {heads} head{'s' if heads > 1 else ''}"


def measure_shape(setting: Setting) -> Measured:
  """Losses of one N at several depths, the width following."""
  return _measure_shapes(setting, SHAPES, figure="shape")


def measure_heads(setting: Setting) -> Measured:
  """Losses of one N with several numbers of heads; at tiny scale their numbers of parameters."""
  if setting.scale == "tiny":
    nets = {f"{heads}": runs.job(setting, runs.TRANSFORMER, model__n_heads=heads) for _, _, heads in HEADS["small"]}
    counts = {name: transformer_lm.counts(load_config(*net), vocab_size=256).n_total for name, net in nets.items()}
    return Measured([{"seed": setting.seeds[0], "heads": name, "count": count} for name, count in counts.items()])
  return _measure_shapes(setting, HEADS, figure="heads")


def _measure_shapes(setting: Setting, shapes: Mapping[str, Sequence[tuple[int, int, int]]], *, figure: str) -> Measured:
  """The learning rate is one of N alone, as in the paper (D.1)."""
  paper, width = setting.scale == "paper", RATE_WIDTH[setting.scale]
  jobs = {
    f"{shape} {seed}": runs.transformer(
      setting, shape[1], SHAPE_STEPS[setting.scale], seed=seed, model__n_layers=shape[0], model__n_heads=shape[2],
      optim__learning_rate=runs.paper_rate(width) if paper else runs.rate(width),
    )
    for shape in shapes[setting.scale]
    for seed in setting.seeds
  }  # fmt: skip
  made = setting.train(jobs)
  rows = [
    {"seed": seed, "shape": shape_name(shape), "loss": made[f"{shape} {seed}"].evaluation("heldout")}
    for shape in shapes[setting.scale]
    for seed in setting.seeds
  ]
  if setting.scale == "tiny":
    return Measured(rows)
  return Measured(rows, {figure: figures.draw_shapes(rows)}, [APART] if setting.scale == "small" else [])


def judge_shape(rows: Sequence[Row], scale: str) -> Judged:
  """The rule of `shape`."""
  means = {
    shape: float(np.mean(column(rows, "loss", shape=shape))) for shape in dict.fromkeys(row["shape"] for row in rows)
  }
  compared = {shape: loss for shape, loss in means.items() if shape != shape_name(REPORTED_ONLY)}
  best = min(compared.values())
  finding = ", ".join(f"{shape} {100 * (loss / best - 1):+.1f} %" for shape, loss in means.items())
  if scale == "tiny":
    return learns(rows, finding)
  return Judged(verdict(max(compared.values()) <= 1.03 * best), f"{finding} (best {best:.3f} nats)")


def judge_heads(rows: Sequence[Row], scale: str) -> Judged:
  """The rule of `heads`."""
  if scale == "tiny":
    counts = {row["count"] for row in rows}
    return Judged(verdict(len(counts) == 1), f"{', '.join(f'{count:.0f}' for count in counts)} parameters")
  return judge_shape(rows, scale)


# Transformers and LSTMs by position

PAIRS = ((32, 39), (64, 78))  # widths of Transformer and LSTM, two layers each, of equal N
FACTORS = (0.5, 1.0, 2.0)  # times the rule of the rate
PAIR_STEPS = 1024
EARLY, LATE = slice(0, 8), slice(64, 128)
POSITION_TOKENS = {"tiny": 8192, "small": 786_432}


def pair_job(setting: Setting, family: str, width: int, *, factor: float, seed: int) -> tuple[str, dict[str, Any]]:
  """A run of either family at its rule's rate times a factor."""
  if family == "transformer":
    return runs.transformer(setting, width, PAIR_STEPS, seed=seed, optim__learning_rate=factor * runs.rate(width))
  rate = factor * runs.lstm_rate(width)
  return runs.job(setting, runs.LSTM, model__d_model=width, optim__learning_rate=rate, steps=PAIR_STEPS, seed=seed)


def tuned_runs(setting: Setting) -> tuple[dict[tuple[str, int, int], Trained], dict[tuple[str, int], float]]:
  """(family, width, seed) -> run at the best rate, and the factors chosen: the first seed tries all, the others take its best."""
  members = [pair for sizes in PAIRS for pair in zip(("transformer", "lstm"), sizes, strict=True)]
  first, *others = setting.seeds
  tried = setting.train({
    f"{family} {width} {factor}": pair_job(setting, family, width, factor=factor, seed=first)
    for family, width in members
    for factor in FACTORS
  })  # fmt: skip
  chosen, made = {}, {}
  for family, width in members:
    losses = {factor: tried[f"{family} {width} {factor}"].evaluation("heldout") for factor in FACTORS}
    chosen[family, width] = min(losses, key=lambda factor: losses[factor])
    made[family, width, first] = tried[f"{family} {width} {chosen[family, width]}"]
  rest = setting.train({
    f"{family} {width} {seed}": pair_job(setting, family, width, factor=chosen[family, width], seed=seed)
    for family, width in members
    for seed in others
  })  # fmt: skip
  made |= {(family, width, seed): rest[f"{family} {width} {seed}"] for family, width in members for seed in others}
  return made, chosen


def measure_lstm(setting: Setting) -> Measured:
  """The gap of LSTM and Transformer at early and late positions; at tiny scale the sizes that are compared."""
  if setting.scale == "tiny":
    sizes = [(runs.size_of(wide), lstm_counts(vocab_size=256, n_layers=2, d_model=narrow).n) for wide, narrow in PAIRS]
    return Measured(
      [{"seed": setting.seeds[0], "width": w, "N": n, "N_lstm": m} for (w, _), (n, m) in zip(PAIRS, sizes, strict=True)]
    )
  made, chosen = tuned_runs(setting)
  tokens = POSITION_TOKENS[setting.scale]
  by_position = {key: runs.position_losses(run, tokens=tokens) for key, run in made.items()}
  rows: list[dict[str, Any]] = []
  for wide, narrow in PAIRS:
    for seed in setting.seeds:
      one, other = by_position["transformer", wide, seed], by_position["lstm", narrow, seed]
      rows.append({
        "seed": seed, "width": wide, "early_gap": float((other - one)[EARLY].mean()), "late_gap": float((other - one)[LATE].mean()),
        "transformer": float(one.mean()), "lstm": float(other.mean()), "loss": float(max(one.mean(), other.mean())),
        "transformer_factor": chosen["transformer", wide], "lstm_factor": chosen["lstm", narrow],
      })  # fmt: skip
  return Measured(rows, {"lstm": figures.draw_positions(by_position)})


def judge_lstm(rows: Sequence[Row], scale: str) -> Judged:
  """The rule of `late_tokens`."""
  if scale == "tiny":
    apart = [abs(row["N_lstm"] / row["N"] - 1) for row in rows]
    return Judged(verdict(max(apart) < 0.05), f"numbers of parameters within {100 * max(apart):.1f} %")
  large = select(rows, width=max(row["width"] for row in rows))
  early, late = column(large, "early_gap"), column(large, "late_gap")
  overall = [f"{np.mean(column(large, name)):.3f}" for name in ("transformer", "lstm")]
  finding = (
    f"larger size: LSTM minus Transformer {np.mean(early):+.3f} nats early, {np.mean(late):+.3f} late; overall Transformer "
    f"{overall[0]}, LSTM {overall[1]}"
  )
  return Judged(verdict(all(b > a for a, b in zip(early, late, strict=True))), finding)


# Loss against position

POSITION_RUN = {"tiny": (16, 50), "small": (96, 4096)}  # width, steps


def measure_position(setting: Setting) -> Measured:
  """A power law with a constant and a logarithm, fitted to the first half of the context, on the second half."""
  width, steps = POSITION_RUN[setting.scale]
  made = setting.train({f"{seed}": runs.transformer(setting, width, steps, seed=seed) for seed in setting.seeds})
  rows, shown = [], {}
  for seed in setting.seeds:
    losses = runs.position_losses(made[f"{seed}"], tokens=POSITION_TOKENS[setting.scale])
    T = np.arange(1.0, len(losses) + 1)
    half = len(T) // 2
    near, far = slice(1, half), slice(half, None)
    power = try_fit("power_floor", losses[near], D=T[near])
    line = np.polyfit(np.log(T[near]), losses[near], 1)
    straight = np.polyval(line, np.log(T[far]))
    errors = {"logarithm": float(np.abs(straight - losses[far]).mean())}
    values: Mapping[str, float] = {}
    if power is not None:
      errors["power"] = float(np.abs(power.predict(D=T[far]) - losses[far]).mean())
      values = power.parameters
    shown[seed] = losses, power, line
    rows.append({
      "seed": seed, "loss": float(losses.mean()), "power_error": errors.get("power", math.nan),
      "logarithm_error": errors["logarithm"], "p": values.get("alpha_D", math.nan), "E_T": values.get("E", math.nan),
      "a": values["D_c"] ** values["alpha_D"] if values else math.nan,
    })  # fmt: skip
  return Measured(rows, {} if setting.scale == "tiny" else {"position": figures.draw_position_law(shown)})


def judge_position(rows: Sequence[Row], scale: str) -> Judged:
  """The rule of `position_law`."""
  power, straight, p = (column(rows, name) for name in ("power_error", "logarithm_error", "p"))
  finding = (
    f"{np.mean(column(rows, 'E_T')):.2f} + {np.mean(column(rows, 'a')):.2f} T^-{np.mean(p):.2f}; error on the far half "
    f"{np.mean(power):.4f} nats, of the logarithm {np.mean(straight):.4f}"
  )
  if scale == "tiny":
    return learns(rows, finding)
  holds = all(a < b and 0.2 < q < 1.2 for a, b, q in zip(power, straight, p, strict=True))
  return Judged(verdict(holds), finding)


# Critical batch

# Width -> (sequences a step, steps) of each batch.
BATCHES = {
  "tiny": {8: ((8, 50),), 16: ((8, 50),)},
  "small": dict.fromkeys((16, 32), ((4, 1536), (8, 1024), (16, 768), (32, 512), (64, 384), (128, 256))),
}
BATCH_FACTORS = {"tiny": (1.0,), "small": (0.5, 1.0, 2.0)}  # times a rate that grows as the root of the batch
TARGETS = (1.02, 1.1, 1.2)  # times the lowest loss that every batch size of every width reaches
NOISE_BATCH = {"tiny": 0, "small": 16}  # sequences a step of the run whose gradient noise is measured


def batch_job(
  setting: Setting, width: int, batch: int, *, steps: int, factor: float, seed: int
) -> tuple[str, dict[str, Any]]:
  """A run at a constant rate with a warm-up of 20 steps."""
  rate = min(factor * runs.rate(width) * math.sqrt(batch / 8), 0.03)
  noise = {"execution__noise_scale": True} if batch == NOISE_BATCH[setting.scale] else {}
  return runs.transformer(
    setting, width, steps, seed=seed, batch_size=batch, optim__learning_rate=float(f"{rate:.2e}"), schedule__name="constant",
    schedule__warmup_steps=20 if setting.scale != "tiny" else 5, log_every=1, eval__tokens=32_768 if setting.scale != "tiny" else 8192,
    **noise,
  )  # fmt: skip


def batch_runs(setting: Setting) -> dict[tuple[int, int, int, float], Trained]:
  """(width, sequences a step, seed, factor) -> run: the first seed tries all rates, the others take its best."""
  plan = [(w, b, steps) for w, batches in BATCHES[setting.scale].items() for b, steps in batches]
  first, *others = setting.seeds
  jobs = {
    (w, b, first, f): batch_job(setting, w, b, steps=steps, factor=f, seed=first)
    for w, b, steps in plan
    for f in BATCH_FACTORS[setting.scale]
  }
  tried = setting.train({str(key): each for key, each in jobs.items()})
  made = {key: tried[str(key)] for key in jobs}
  for w, b, _ in plan:
    ends = {f: made[w, b, first, f].evaluation("heldout") for f in BATCH_FACTORS[setting.scale]}
    best = min(ends, key=lambda f, ends=ends: ends[f])
    steps = dict(BATCHES[setting.scale][w])[b]
    jobs |= {(w, b, seed, best): batch_job(setting, w, b, steps=steps, factor=best, seed=seed) for seed in others}
  rest = setting.train({str(key): each for key, each in jobs.items() if key not in made})
  return made | {key: rest[str(key)] for key in jobs if key not in made}


def batch_rows(made: Mapping[tuple[int, int, int, float], Trained], *, context: int) -> list[dict[str, Any]]:
  """Smoothed training losses as rows of checkpoints: read once, a training loss is as good as a held-out one."""
  rows = []
  for (width, batch, seed, factor), run in made.items():
    steps, losses = run.curve()
    at, smooth = curves.smoothed(np.array(steps), np.array(losses))
    size = runs.size_of(width, layers=run.config.model.n_layers)
    for step, loss in zip(at, smooth, strict=True):
      rows.append({
        "cell": f"{width}_{batch}_{seed}_{factor}", "seed": seed, "N": size, "D": step * batch * context, "step": step,
        "batch": batch, "lr": run.config.optim.learning_rate, "schedule": "constant", "final": 0, "loss": loss,
      })  # fmt: skip
  return rows


def measure_batch(setting: Setting) -> Measured:
  """B_crit of each size at three losses, seed by seed, and the gradient noise scale near them."""
  made = batch_runs(setting)
  context = next(iter(made.values())).config.data.context
  table = runs.write_table(setting, "batches", batch_rows(made, context=context))
  tuned = steps_to_loss.tuned(steps_to_loss.find_curves(table, np.ones(table.n_rows, bool))[0])
  lowest = max(min(float(np.exp(curve.knots_loss[-1])) for curve in run.curves) for run in tuned)  # that all reach
  targets = [share * lowest for share in TARGETS]
  rows: list[dict[str, Any]] = []
  for seed in setting.seeds:
    worst = max(run.evaluation("heldout") for key, run in made.items() if key[2] == seed)
    own = [run for run in tuned if run.seed == str(seed)]
    for width in BATCHES[setting.scale]:
      members = [run for run in own if run.N == runs.size_of(width, layers=_layers(made))]
      for target in targets:
        steps = np.array([run.steps_to(np.array([target]))[0] for run in members])
        there = np.isfinite(steps)
        if there.sum() < hyperbola.FEWEST:
          continue
        fit = hyperbola.fit(np.array([run.B for run in members])[there], steps[there], np.ones((1, there.sum())))
        rows.append({
          "seed": seed, "width": width, "target": round(float(target), 4), "loss": worst, "batches": int(there.sum()),
          **{name: float(value[0]) for name, value in fit.values().items()},
          "B_simple": near_noise(made, width, seed, target, setting.scale),
        })  # fmt: skip
    if not select(rows, seed=seed):
      rows.append({"seed": seed, "loss": worst})
  return Measured(rows, {} if setting.scale == "tiny" else {"critical_batch": figures.draw_batches(rows)})


def _layers(made: Mapping[Any, Trained]) -> int:
  return int(next(iter(made.values())).config.model.n_layers)


def near_noise(
  made: Mapping[tuple[int, int, int, float], Trained], width: int, seed: int, target: float, scale: str
) -> float:
  """tr(Sigma)/|G|² in tokens in the window whose training loss is nearest to the target; nan where no run measured it."""
  own = [run for (w, b, s, _), run in made.items() if (w, b, s) == (width, NOISE_BATCH[scale], seed)]
  if not own:
    return math.nan
  found = noise_scale(own[0].workdir / "metrics.jsonl", windows=8, after=20)
  return float(found.scale[np.abs(found.loss - target).argmin()])


def judge_batch(rows: Sequence[Row], scale: str) -> Judged:
  """The rule of `critical_batch`: mean ln B_crit over seeds at each size and target."""
  if scale == "tiny":
    return learns(rows, f"{sum('B_crit' in row for row in rows)} fits of B_crit")
  widths, targets = (sorted({row[name] for row in rows if name in row}) for name in ("width", "target"))
  logs: dict[tuple[int, float], float] = {}
  for width in widths:
    for target in targets:
      values = column(rows, "B_crit", width=width, target=target)
      logs[width, target] = float(np.mean(np.log(values))) if values else math.nan
  between = float(np.mean([abs(logs[widths[-1], target] - logs[widths[0], target]) for target in targets]))
  along = float(np.mean([abs(logs[width, targets[-1]] - logs[width, targets[0]]) for width in widths]))
  shown = "; ".join(
    f"width {width}: "
    + ", ".join(f"{np.exp(logs[width, target]) / 1000:.1f}k at {target:.2f}" for target in reversed(targets))
    for width in widths
  )
  finding = f"B_crit (tokens) {shown}; factor {np.exp(between):.2f} between sizes, {np.exp(along):.2f} between losses"
  return Judged(verdict(between < math.log(2) and between < along), finding)


# Transfer to other texts

TRANSFER = {  # width, steps, finished (with its cooldown)
  "tiny": ((8, 50, True), (16, 50, True)),
  "small": tuple((w, *each) for w in (16, 32, 64) for each in ((512, False), (1024, False), (2048, True))),
}


def measure_transfer(setting: Setting) -> Measured:
  """Losses of sizes and checkpoints on their own held-out text and on other texts."""
  jobs = {
    f"{width} {steps} {seed}": runs.transformer(
      setting, width, steps, seed=seed, **({} if finished else {"schedule__name": "constant"})
    )
    for width, steps, finished in TRANSFER[setting.scale]
    for seed in setting.seeds
  }
  made = setting.train(jobs)
  rows = []
  compiled: dict[tuple[str, int], Any] = {}  # programs and texts serve all runs of a width
  for name, changes in runs.other_texts(setting).items():
    for width, steps, finished in TRANSFER[setting.scale]:
      for seed in setting.seeds:
        run = made[f"{width} {steps} {seed}"]
        loaded = load_run(run.workdir, changes)
        programs, source = compiled.setdefault((name, width), (loaded.programs, loaded.source))
        other = evaluate(programs, loaded.state, source=source, split="heldout")["loss"]
        rows.append({
          "seed": seed, "text": name, "state": "finished" if finished else "unfinished", "width": width, "steps": steps,
          "loss": run.evaluation("heldout"), "other": other,
        })  # fmt: skip
  return Measured(rows, {} if setting.scale == "tiny" else {"transfer": figures.draw_transfer(rows)})


def transfer_line(rows: Sequence[Row]) -> dict[str, float]:
  """Correlation, slope, and the largest relative distance from the line of least squares, of one text and seed."""
  own, other = np.array(column(rows, "loss")), np.array(column(rows, "other"))
  slope, level = np.polyfit(own, other, 1)
  farthest = np.abs(other / (slope * own + level) - 1).max()
  return {"r": float(np.corrcoef(own, other)[0, 1]), "slope": float(slope), "farthest": float(farthest)}


def judge_transfer(rows: Sequence[Row], scale: str) -> Judged:
  """The rule of `transfer`."""
  lines = {}
  for text in dict.fromkeys(row["text"] for row in rows):
    for seed in dict.fromkeys(row["seed"] for row in rows):
      lines[text, seed] = transfer_line(select(rows, text=text, seed=seed))
  finding = "; ".join(
    f"{text}: r {min(line['r'] for (name, _), line in lines.items() if name == text):.4f} or more, within "
    f"{100 * max(line['farthest'] for (name, _), line in lines.items() if name == text):.1f} %, slope "
    f"{np.mean([line['slope'] for (name, _), line in lines.items() if name == text]):.2f}"
    for text in dict.fromkeys(row["text"] for row in rows)
  )
  if scale == "tiny":
    return learns(rows, finding)
  return Judged(verdict(all(line["r"] > 0.98 and line["farthest"] < 0.02 for line in lines.values())), finding)

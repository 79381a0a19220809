"""Claims of "Understanding LSTM Networks": long lags, the gradient that carries them, the variants, the nets of 1997.

Olah 2015, https://colah.github.io/posts/2015-08-Understanding-LSTMs; the experiments are those of Hochreiter, Schmidhuber
1997, Neural Computation 9(8), in their own form or in that of Le, Jaitly, Hinton 2015 (the adding problem, where guessing 1
costs 1/6). Cells: `ilya_jax/models/recurrent_cells.py`; tasks: `ilya_jax/data/long_lag.py`.

`lag_200` was part of `longer_lags`, with a GRU (.0014), until both had been measured: 25 minutes together.

Every number is of a fixed held-out set of 2,560 sequences. Initial values are uniform in +-1/sqrt(width); RNN and GRU have no forget
bias. Expected at small scale: adding over 60 steps, 4,000 updates: RNN .15 to .16, LSTM .002 to .003, GRU .001 to .002.
"""

import math
from collections.abc import Sequence
from typing import Any

import jax
import numpy as np
from matplotlib.figure import Figure

from experiments import lstm_1997
from experiments import lstm_figures as figures
from experiments import lstm_gradients as gradients
from experiments.lstm_runs import first_where, held_out, job, mean_of
from ilya_jax.claims import Claim, Judged, Measured, Setting
from ilya_jax.claims.claim import Row, column, select, verdict
from ilya_jax.claims.trainings import Trained
from ilya_jax.models.recurrent_cells import CELLS, Recurrent

Array = np.ndarray
Jobs = dict[str, tuple[str, dict[str, Any]]]

GUESS = 1 / 6  # squared error of the answer 1 to the adding problem
LEARNED = 0.95  # share of right answers of a cell that has learned temporal order
SOLVED = 0.02  # squared error of the adding problem
SHORT = 60  # steps of the adding problem in most claims
LENGTHS = {"small": (20, 100), "paper": (100, 200, 500, 1000)}
LONGEST = 200
APART = "Runs of what was one claim, longer_lags with lag_200, until it had been measured; each part is judged by its part of the rule."
ADDERS = ("rnn", "lstm", "gru")
VARIANTS = ("lstm", "lstm_peephole", "lstm_coupled", "gru", "lstm_no_forget", "rnn")
GATED = VARIANTS[:4]
BIASES = (0.0, 1.0, 3.0)


# Long lags


def adding_jobs(setting: Setting, cells: Sequence[str], lengths: Sequence[int]) -> Jobs:
  """The runs of the adding problem, "cell length seed" each; but for `small` the forget gate begins with a time constant of
  the sequence's length."""
  paper: dict[str, Any] = {"model__width": 128, "steps": 40_000} if setting.scale == "paper" else {}
  jobs = {}
  for length in lengths:
    long = {} if length == SHORT else {"data__length": length, "model__forget_bias": math.log(length)}
    for cell in cells:
      for seed in setting.seeds:
        jobs[f"{cell} {length} {seed}"] = job("small", model__cell=cell, seed=seed, **long, **paper)
  return jobs


def adding_runs(
  setting: Setting, lengths: Sequence[int], cells: Sequence[str] = ADDERS
) -> tuple[dict[str, Trained], list[Row], Figure]:
  """Runs of the cells, their squared errors, and their learning curves."""
  runs = setting.train(adding_jobs(setting, cells, lengths))
  rows, panels = [], {}
  for length in lengths:
    panel = {}
    for cell in cells:
      own = {seed: runs[f"{cell} {length} {seed}"] for seed in setting.seeds}
      for seed, run in own.items():
        loss, right = run.evaluation("heldout"), run.evaluation("heldout", "right")
        rows.append({"seed": seed, "cell": cell, "length": length, "squared_error": loss, "right": right})
      panel[figures.NAMES[cell]] = [held_out(run) for run in own.values()]
    panels[f"Adding problem, {length} steps, {len(setting.seeds)} seeds"] = panel
  lines = {"guessing 1: 0.167": ("h", GUESS)}
  return dict(runs), rows, figures.draw_curves(panels, x="updates", y="held-out squared error", lines=lines)


def shown_errors(rows: Sequence[Row]) -> str:
  """The mean squared errors, length by length."""
  parts = []
  for length in sorted({int(row["length"]) for row in rows}):
    cells = [cell for cell in ADDERS if select(rows, cell=cell, length=length)]
    means = {cell: mean_of(rows, "squared_error", cell=cell, length=length) for cell in cells}
    parts.append(f"{length} steps: " + ", ".join(f"{figures.NAMES[cell]} {value:.4f}" for cell, value in means.items()))
  return f"squared error (guessing .1667) at {'; '.join(parts)}"


def all_below(rows: Sequence[Row], limit: float, **conditions: Any) -> bool:
  """Whether every seed's squared error is below the limit."""
  return all(error < limit for error in column(rows, "squared_error", **conditions))


def all_above(rows: Sequence[Row], limit: float, **conditions: Any) -> bool:
  """Whether every seed's squared error is above the limit."""
  return all(error > limit for error in column(rows, "squared_error", **conditions))


def measure_lags(setting: Setting) -> Measured:
  """Squared errors over 60 steps; at tiny scale the share of right first symbols of an LSTM."""
  if setting.scale == "tiny":
    runs = setting.train({f"{seed}": job("tiny", seed=seed) for seed in setting.seeds})
    right = {seed: runs[f"{seed}"].evaluation("heldout", "right") for seed in setting.seeds}
    return Measured([{"seed": seed, "cell": "lstm", "right": share} for seed, share in right.items()])
  runs, rows, curves = adding_runs(setting, (SHORT,))
  inputs, traces = gradients.gate_traces(runs[f"lstm {SHORT} {setting.seeds[0]}"])
  return Measured(rows, {"adding_curves": curves, "gate_traces": figures.draw_gates(inputs, traces)})


def judge_lags(rows: Sequence[Row], scale: str) -> Judged:
  """The rule of `bridges_lags`."""
  if scale == "tiny":
    right = column(rows, "right")
    return Judged(verdict(all(r > LEARNED for r in right)), f"{min(right):.1%} right, 10 steps after the symbol")
  return Judged(verdict(all_below(rows, SOLVED, cell="lstm") and all_above(rows, 0.10, cell="rnn")), shown_errors(rows))


def measure_longer(setting: Setting) -> Measured:
  """Squared errors by length; at tiny scale the factors per step of the gradients that an RNN and an LSTM begin with."""
  if setting.scale == "tiny":
    rows = []
    for seed in setting.seeds:
      for cell, bias in (("rnn", 0.0), ("lstm", math.log(100))):
        net = gradients.initial(cell, width=16, seed=seed, forget_bias=bias)
        norms = gradients.by_lag(cell, net, inputs=gradients.adding_inputs(seed))
        rows.append({"seed": seed, "cell": cell, **gradients.falling(norms)})
    return Measured(rows)
  _, rows, curves = adding_runs(setting, LENGTHS[setting.scale])
  return Measured(rows, {"adding_by_length": curves}, [APART] if setting.scale == "small" else [])


def judge_longer(rows: Sequence[Row], scale: str) -> Judged:
  """The rule of `longer_lags`."""
  if scale == "tiny":
    rnn, lstm = column(rows, "factor", cell="rnn"), column(rows, "factor", cell="lstm")
    holds = all(a < b for a, b in zip(rnn, lstm, strict=True))
    return Judged(verdict(holds), f"initial factor per step: RNN {np.mean(rnn):.4f}, LSTM {np.mean(lstm):.4f}")
  if scale == "paper":
    return Judged(verdict(all_below(rows, 0.01, cell="lstm") and all_above(rows, 0.15, cell="rnn")), shown_errors(rows))
  holds = all(all_below(rows, SOLVED, cell="lstm", length=length) for length in (20, 100))
  return Judged(verdict(holds and all_above(rows, 0.15, cell="rnn", length=100)), shown_errors(rows))


def measure_longest(setting: Setting) -> Measured:
  """Squared errors over 200 steps; at tiny scale the initial gradients of forget biases ln 100 and ln 200."""
  if setting.scale == "tiny":
    seed = setting.seeds[0]
    inputs, rows = gradients.adding_inputs(seed), []
    for length in (100, LONGEST):
      net = gradients.initial("lstm", width=16, seed=seed, forget_bias=math.log(length))
      rows.append({"seed": seed, "length": length, **gradients.falling(gradients.by_lag("lstm", net, inputs=inputs))})
    return Measured(rows)
  _, rows, curves = adding_runs(setting, (LONGEST,), ("rnn", "lstm"))
  return Measured(rows, {"adding_200": curves}, [APART])


def judge_longest(rows: Sequence[Row], scale: str) -> Judged:
  """The rule of `lag_200`."""
  if scale == "tiny":
    short, long = (column(rows, "factor", length=length)[0] for length in (100, LONGEST))
    return Judged(verdict(short < long), f"initial factor per step {short:.4f} at ln 100, {long:.4f} at ln 200")
  return Judged(verdict(all_above(rows, 0.15, cell="rnn", length=LONGEST)), shown_errors(rows))


# The gradient


def measure_gradient(setting: Setting) -> Measured:
  """Factors per step of lag, at the beginning and (at small scale) of the nets that were trained on 60 steps."""
  trained = setting.train(adding_jobs(setting, ("rnn", "lstm"), (SHORT,))) if setting.scale == "small" else {}
  rows: list[Row] = []
  panels: dict[str, dict[str, list[figures.Curve]]] = {}
  for seed in setting.seeds:
    inputs = gradients.adding_inputs(seed)
    nets = {("Before training", *net): params for net, params in gradients.nets_of(setting.scale, seed).items()}
    for cell in ("rnn", "lstm") if trained else ():
      params = trained[f"{cell} {SHORT} {seed}"].load().params["cells"]
      nets["After training on 60 steps", figures.NAMES[cell], cell] = params
    for (when, name, cell), params in nets.items():
      norms = gradients.by_lag(cell, params, inputs=inputs)
      rows.append({"seed": seed, "net": name, "when": when.split()[0].lower(), **gradients.falling(norms)})
      if "alone" not in name:
        curve = np.arange(gradients.LAGS), norms / norms[0]
        label = "LSTM, trained" if name == "LSTM" else name
        panels.setdefault(when, {}).setdefault(label, []).append(curve)
  y = "gradient, relative to lag 0"
  return Measured(rows, {"gradient_by_lag": figures.draw_curves(panels, x="lag, steps", y=y)})


def judge_gradient(rows: Sequence[Row], scale: str) -> Judged:
  """The rule of `gradient_by_lag`."""

  def factors(net: str, when: str = "before") -> list[float]:
    return column(rows, "factor", net=net, when=when)

  holds = all(gradients.near(f, bias) for bias in (1, 5) for f in factors(f"gates alone, forget bias {bias}"))
  holds = holds and all(f <= 0.9 for f in factors("RNN") + factors("RNN, spectral radius 0.9"))
  holds = holds and all(math.log(f) >= 1.1 * gradients.log_gate(1) for f in factors("LSTM, forget bias 1"))
  names = dict.fromkeys(str(row["net"]) for row in rows if row["when"] == "before")
  shown = [f"{net} {np.mean(factors(net)):.4f}" for net in names]
  if scale == "small":
    rnn, lstm = factors("RNN", "after"), factors("LSTM", "after")
    holds = holds and all(a < b and b >= 0.95 for a, b in zip(rnn, lstm, strict=True))
    shown.append(f"trained: RNN {np.mean(rnn):.4f}, LSTM {np.mean(lstm):.4f}")
  return Judged(verdict(holds), f"factor per step of lag: {'; '.join(shown)}")


def measure_open_gate(setting: Setting) -> Measured:
  """Factors per step of lag at forget bias 5: of gates that see nothing, of the whole LSTM, and along its cell alone.

  The bounds 0.98 and 1.02 were written before any gradient was taken; the first tiny run (width 16) then gave 1.034.
  """
  rows = []
  for seed in setting.seeds:
    inputs = gradients.adding_inputs(seed)
    for (name, cell), params in gradients.nets_of(setting.scale, seed).items():
      if name.endswith("bias 5"):
        rows.append({"seed": seed, "net": name, **gradients.falling(gradients.by_lag(cell, params, inputs=inputs))})
      if name == "LSTM, forget bias 5":
        rows.append(
          {
            "seed": seed,
            "net": "along its cell alone",
            **gradients.falling(gradients.direct_by_lag(params, inputs=inputs)),
          }
        )
  return Measured(rows)


def judge_open_gate(rows: Sequence[Row], scale: str) -> Judged:
  """The rule of `open_gate`."""
  holds = all(gradients.near(f, 5) for f in column(rows, "factor", net="gates alone, forget bias 5"))
  if scale == "small":
    holds = holds and all(0.98 <= f <= 1.02 for f in column(rows, "factor", net="LSTM, forget bias 5"))
  names = dict.fromkeys(str(row["net"]) for row in rows)
  return Judged(
    verdict(holds), "factor per step: " + ", ".join(f"{n} {mean_of(rows, 'factor', net=n):.4f}" for n in names)
  )


# Variants


def measure_variants(setting: Setting) -> Measured:
  """Right answers of each cell on temporal order; at tiny scale the cells' numbers of weights."""
  modules = {"repeating_modules": figures.draw_modules()}
  if setting.scale == "tiny":
    x = np.zeros((1, 1, 10), np.float32)
    rows = []
    for cell in CELLS:
      shapes = jax.eval_shape(Recurrent(cell, 20).init, jax.random.key(0), x)
      count = sum(leaf.size for leaf in jax.tree.leaves(shapes))
      rows.append({"seed": setting.seeds[0], "cell": cell, "count": count})
    return Measured(rows, modules)
  jobs = {f"{cell} {seed}": job("order", model__cell=cell, seed=seed) for cell in VARIANTS for seed in setting.seeds}
  runs = setting.train(jobs)
  rows, panel = [], {}
  for cell in VARIANTS:
    curves = [held_out(runs[f"{cell} {seed}"], "right") for seed in setting.seeds]
    for seed, (steps, right) in zip(setting.seeds, curves, strict=True):
      updates = first_where(steps, [share >= LEARNED for share in right])
      rows.append({"seed": seed, "cell": cell, "right": right[-1], "updates": updates})
    panel[figures.NAMES[cell]] = curves
  title = f"Temporal order, 40 to 44 steps, {len(setting.seeds)} seeds"
  lines = {"guessing": ("h", 0.25)}
  drawn = figures.draw_curves({title: panel}, x="updates", y="right answers", logarithmic=False, lines=lines)
  return Measured(rows, {**modules, "variants": drawn})


COUNTS = {"rnn": 620, "lstm": 2480, "lstm_no_forget": 1860, "lstm_coupled": 1860, "lstm_peephole": 2540,
          "lstm_peephole_full": 3680, "gru": 1860, "gru_torch": 1880}  # fmt: skip


def judge_variants(rows: Sequence[Row], scale: str) -> Judged:
  """The rule of `variants`."""
  if scale == "tiny":
    counts = {str(row["cell"]): int(row["count"]) for row in rows}
    return Judged(verdict(counts == COUNTS), ", ".join(f"{cell} {count}" for cell, count in counts.items()))
  holds = all(right > LEARNED for cell in GATED for right in column(rows, "right", cell=cell))
  slowest = max(mean_of(rows, "updates", cell=cell) for cell in GATED)
  rnn = mean_of(rows, "updates", cell="rnn")
  holds = holds and (mean_of(rows, "right", cell="rnn") < LEARNED or not rnn < 2 * slowest)
  shown = []
  for cell in VARIANTS:
    updates = mean_of(rows, "updates", cell=cell)
    when = f"after {updates:.0f} updates" if math.isfinite(updates) else "not in every seed"
    shown.append(f"{figures.NAMES[cell]} {mean_of(rows, 'right', cell=cell):.1%} ({LEARNED:.0%} {when})")
  return Judged(verdict(holds), f"right: {', '.join(shown)}")


# The forget bias


def measure_bias(setting: Setting) -> Measured:
  """Updates that the LSTM takes on 60 steps by forget bias; at tiny scale the gradient that is left over 50 steps."""
  seeds = setting.seeds
  if setting.scale == "tiny":
    inputs = gradients.adding_inputs(0)
    rows = []
    for bias in BIASES:
      net = gradients.initial("lstm", width=16, seed=seeds[0], forget_bias=bias)
      rows.append({"seed": seeds[0], "bias": bias, **gradients.falling(gradients.by_lag("lstm", net, inputs=inputs))})
    return Measured(rows)
  runs = setting.train(
    {
      f"{bias:g} {seed}": job("small", model__cell="lstm", model__forget_bias=bias, seed=seed)
      for bias in BIASES
      for seed in seeds
    }
  )
  rows, panel = [], {}
  for bias in BIASES:
    curves = [held_out(runs[f"{bias:g} {seed}"]) for seed in seeds]
    for seed, (steps, losses) in zip(seeds, curves, strict=True):
      updates = first_where(steps, [loss < SOLVED for loss in losses])
      rows.append({"seed": seed, "bias": bias, "updates": updates, "squared_error": losses[-1]})
    panel[f"forget bias {bias:g}"] = curves
  title = f"LSTM, adding problem, {SHORT} steps, {len(seeds)} seeds"
  lines = {"guessing 1: 0.167": ("h", GUESS), "solved: 0.02": ("h", SOLVED)}
  return Measured(
    rows, {"forget_bias": figures.draw_curves({title: panel}, x="updates", y="held-out squared error", lines=lines)}
  )


def judge_bias(rows: Sequence[Row], scale: str) -> Judged:
  """The rule of `forget_bias`."""
  if scale == "tiny":
    left = [column(rows, "log10_at_lag_50", bias=bias)[0] for bias in BIASES]
    shown = ", ".join(f"10^{value:.1f} at bias {bias:g}" for bias, value in zip(BIASES, left, strict=True))
    return Judged(verdict(left[0] < left[1] < left[2]), f"gradient over 50 steps {shown}")
  updates = {bias: [math.inf if math.isnan(u) else u for u in column(rows, "updates", bias=bias)] for bias in BIASES}
  slower = [zero > other for bias in BIASES[1:] for zero, other in zip(updates[0.0], updates[bias], strict=True)]
  shown = "; ".join(
    f"bias {bias:g}: {', '.join(f'{u:.0f}' if math.isfinite(u) else 'not within the budget' for u in own)}"
    for bias, own in updates.items()
  )
  found = "holds" if all(slower) else "does not hold" if sum(slower) <= len(slower) / 2 else "inconclusive"
  return Judged(found, f"updates until the squared error is below {SOLVED}: {shown}")


EXPERIMENT_4 = "Hochreiter, Schmidhuber 1997, experiment 4"
RECIPE_1997 = (
  "one sequence an update, rate {}, errors cut where they leave the cells, as in the paper: in every seed at most 2 of 2,560 held-out"
  " answers wrong at an evaluation within {} the published mean number of sequences"
)
CLAIMS = (
  Claim(
    "bridges_lags", "The LSTM bridges time lags that a plain RNN cannot.", f"post, 'LSTM Networks'; {EXPERIMENT_4}",
    "adding learned at T = 100, 500 and 1,000, where other recurrent nets fail", {
      "tiny": "an LSTM of 8 cells names a symbol seen 10 steps before, right in more than 95 % after 150 updates of Adam",
      "small": "adding over 60 steps, width 64, 4,000 updates of Adam (rate 1e-3, 64 sequences, clipped at 1): squared error of the"
      " LSTM (forget bias 1) below 0.02 and of the tanh RNN above 0.10 in every seed (guessing: 0.167); the GRU is reported",
    }, measure_lags, judge_lags, by=("length",),
  ),
  Claim(
    "longer_lags", "The longer the lag, the clearer: beyond 100 steps a plain RNN learns nothing, the LSTM goes on.", EXPERIMENT_4,
    "adding learned at T = 100, 500 and 1,000", {
      "tiny": "over 100 steps the gradient that an LSTM with forget bias ln 100 begins with falls more slowly than an RNN's",
      "small": "adding over 20 and 100 steps as in bridges_lags with forget bias ln T, in every seed: squared error of the LSTM below"
      " 0.02 at both, of the tanh RNN above 0.15 at 100; the GRU is reported",
      "paper": "adding over 100, 200, 500 and 1,000 steps, width 128, 40,000 updates, forget bias ln T, in every seed: squared error"
      " of the LSTM below 0.01 and of the tanh RNN above 0.15 at every length",
    }, measure_longer, judge_longer, by=("length",),
  ),
  Claim(
    "lag_200", "Over 200 steps a plain RNN learns nothing.", EXPERIMENT_4, "adding learned at T = 100, 500 and 1,000", {
      "tiny": "the gradient that an LSTM begins with falls more slowly with forget bias ln 200 than with ln 100",
      "small": "adding over 200 steps as in longer_lags: squared error of the tanh RNN above 0.15 in every seed; the LSTM is reported",
    }, measure_longest, judge_longest, by=("length",),
  ),
  Claim(
    "gradient_by_lag", "The gradient tells why: in a plain RNN it vanishes with the lag, along the LSTM's cell it is multiplied by the"
    " forget gate alone.", "post, 'The Core Idea Behind LSTMs'; Hochreiter, Schmidhuber 1997, sections 3 and 4",
    "factor per step: the forget gate, s(1) = 0.731, s(5) = 0.993; 1 with an open gate", {
      scale: "d h_T / d x_t over 100 steps of adding, factor per step fitted to lags 20 to 99, in every seed: of an LSTM whose gates"
      " see nothing within 10 % (of its logarithm) of s(b) for forget bias b = 1 and 5; of RNNs, as drawn and at spectral radius"
      " 0.9, at most 0.9; of LSTMs as drawn with b = 1 at least 0.731 (its logarithm times 1.1)" + more
      for scale, more in (
        ("tiny", ""),
        ("small", "; after training on 60 steps (the runs of bridges_lags) the LSTM's at least 0.95 and above the RNN's"),
      )
    }, measure_gradient, judge_gradient,
  ),
  Claim(
    "open_gate", "With an open forget gate (bias 5) the gradient is nearly flat over 100 steps.", "post, 'The Core Idea Behind LSTMs'",
    "'very easy for information to just flow along it unchanged'; s(5) = 0.993 a step", {
      "tiny": "the factor per step of an LSTM whose gates see nothing within 10 % (of its logarithm) of s(5)",
      "small": "the same, and that of the whole LSTM as drawn 0.98 to 1.02, in every seed",
    }, measure_open_gate, judge_open_gate,
  ),
  Claim(
    "variants", "The variants (peepholes, coupled gates, GRU) do about as well as the LSTM.", "post, 'Variants on Long Short Term"
    " Memory', citing Greff et al. 2015; Hochreiter, Schmidhuber 1997, experiment 6a",
    "'they're all about the same' (Greff et al.)", {
      "tiny": "the cells have the numbers of weights of their equations (10 inputs, width 20)",
      "small": "temporal order 6a shortened to 40 steps (X or Y at 4 to 8 and 20 to 24), width 32, 3,000 updates of Adam (rate 3e-3,"
      " 32 sequences): LSTM, peepholes, coupled gates and GRU above 95 % right in every seed (guessing: 25 %), and the RNN below"
      " 95 % in the mean or more than twice as late to it as the slowest of them; the cell without forget gate is reported",
    }, measure_variants, judge_variants,
  ),
  Claim(
    "forget_bias", "The initial bias of the forget gate matters where lags are long.", "Jozefowicz, Zaremba, Sutskever 2015 (cited in"
    " the post), section 5", "a bias of 1 closes the gap between LSTM and GRU", {
      "tiny": "the initial gradient over 50 steps grows with the forget bias 0, 1, 3",
      "small": "adding over 60 steps as in bridges_lags, evaluated every 100 updates: bias 0 takes more updates to a squared error"
      " below 0.02 than bias 1 and than bias 3 in each of the seeds; does not hold if in half of the comparisons or fewer",
    }, measure_bias, judge_bias, by=("bias",),
  ),
  Claim(
    "adding_1997", "The memory cells of 1997, without a forget gate, learn the adding problem with 93 weights.", EXPERIMENT_4,
    "74,000, 209,000 and 853,000 sequences at T = 100, 500, 1,000 (means of 10), then 1, 0, 1 of 2,560 wrong", {
      "tiny": "the net has exactly 93 weights",
      "small": "T = 100, " + RECIPE_1997.format("0.5", "three times"),
      "paper": "T = 100, 500 and 1,000, " + RECIPE_1997.format("0.5", "three times"),
    }, lstm_1997.measure_adding, lstm_1997.judge,
  ),
  Claim(
    "adding_1997_500", "The same 93 weights learn to add over 500 steps.", EXPERIMENT_4, "209,000 sequences (mean of 10), then 0 wrong", {
      "tiny": "the net has exactly 93 weights",
      "small": "T = 500, " + RECIPE_1997.format("0.5", "once"),
    }, lstm_1997.measure_adding_500, lstm_1997.judge,
  ),
  Claim(
    "order_1997", "The memory cells of 1997 learn in which order symbols stood, tens of steps back.",
    "Hochreiter, Schmidhuber 1997, experiment 6",
    "156 and 308 weights; 31,390 (6a, mean of 20) and 571,100 (6b) sequences, then 1 and 2 of 2,560 wrong", {
      "tiny": "the nets have exactly 156 and 308 weights",
      "small": "6a and 6b, " + RECIPE_1997.format("0.5 and 0.1", "three times"),
    }, lstm_1997.measure_order, lstm_1997.judge,
  ),
)  # fmt: skip

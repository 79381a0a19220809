"""Claims of "GPipe: Efficient Training of Giant Neural Networks using Pipeline Parallelism".

Huang et al. 2018, https://arxiv.org/abs/1811.06965. The pipeline is `ilya_jax/parallel/pipeline.py`, the simulator
`ilya_jax/parallel/schedule.py`. Programs run on eight fake devices of a CPU in a process of their own
(`experiments/gpipe_programs.py`); devices that share cores cannot show a speed-up, so that ticks, simulated schedules and the
compiler's memory analysis stand for it, as the card says. Table 2's throughputs and table 1's largest models want accelerators.

The criterion of `bubble` asks ZB-H2 for no bubble at every size, 8 micro-batches on 8 stages among them; none can be without one
below 2 K - 1 micro-batches: the first stage has run out of forwards before the first backward comes back to it.

Expected: gradients equal to 1e-15; 14.9 of 303 MiB on 8 stages with 16 micro-batches; idle shares as (K - 1)/(M + K - 1).
"""

import json
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib.figure import Figure

from ilya_jax.claims import Claim, Judged, Measured, Setting
from ilya_jax.claims.claim import Row, column, select, verdict
from ilya_jax.errors import RunFailed
from ilya_jax.parallel import partition, schedule
from ilya_jax.parallel.pipeline import Plan, ticks
from ilya_jax.scaling import drawing
from ilya_jax.scaling.drawing import DASHES, MARKERS, OKABE_ITO

Array = np.ndarray

_ROOT = Path(__file__).parents[1]


def run(part: str, **arguments: Any) -> list[dict[str, Any]]:
  """The rows of a part of `gpipe_programs`. Raises RunFailed with the last line of what went wrong."""
  command = [sys.executable, "-m", "experiments.gpipe_programs", part, json.dumps(arguments)]
  done = subprocess.run(command, cwd=_ROOT, capture_output=True, text=True, check=False)
  if done.returncode:
    raise RunFailed(f"gpipe_programs {part}: {(done.stderr.strip().splitlines() or ['no word'])[-1]}")
  rows: list[dict[str, Any]] = json.loads(done.stdout.splitlines()[-1])
  return rows


# Exact gradients

_EXACT = {
  "tiny": {"length": 4, "width": 16, "stages": [2], "factors": [2], "steps": 2},
  "small": {"length": 8, "width": 64, "stages": [1, 2, 4, 8], "factors": [1, 2, 4], "steps": 20},
}


def measure_exact(setting: Setting) -> Measured:
  rows = run("exact", **_EXACT[setting.scale])
  return Measured(rows, {} if setting.scale == "tiny" else {"gradient_error": draw_errors(rows)})


def judge_exact(rows: Sequence[Row], scale: str) -> Judged:
  gradient, after = max(column(rows, "gradient")), max(column(rows, "after_sgd"))
  in_step = all(row["ticks"] == row["M"] + row["K"] - 1 for row in rows)
  steps = _EXACT[scale]["steps"]
  return Judged(
    verdict(gradient <= 1e-12 and after <= 1e-10 and in_step),
    f"largest difference of a gradient {gradient:.1e}, of parameters after {steps} steps of SGD {after:.1e}",
  )


def draw_errors(rows: Sequence[Row]) -> Figure:
  """The largest difference of a gradient against M, a line for each K."""
  figure, (axes,) = drawing.new_figure()
  handles = []
  for k, stages in enumerate(sorted({row["K"] for row in rows})):
    own = select(rows, K=stages)
    values = np.maximum(column(own, "gradient"), 1e-17)  # 0 has no place on a logarithmic axis
    axes.plot(column(own, "M"), values, color=OKABE_ITO[k], marker=MARKERS[k], linestyle=DASHES[k])
    handles.append(drawing.handle(f"K = {stages}", colour=OKABE_ITO[k], marker=MARKERS[k], dashes=DASHES[k]))
  axes.axhline(1e-12, color="black", linewidth=0.9, linestyle=DASHES[2])
  handles.append(drawing.handle("the criterion", colour="black", dashes=DASHES[2]))
  axes.set_xscale("log", base=2)
  axes.set_yscale("log")
  axes.set_xlabel("Micro-batches M")
  axes.set_ylabel("Difference over the largest gradient")
  drawing.legend(figure, handles)
  return figure


# Memory

_MEMORY = {
  "tiny": {"length": 8, "width": 32, "hidden": 128, "examples": 512, "stages": [2], "micro": [1, 8]},
  "small": {
    "length": 16,
    "width": 256,
    "hidden": 1024,
    "examples": 2048,
    "stages": [1, 2, 4, 8],
    "micro": [1, 4, 8, 16],
  },
}


def measure_memory(setting: Setting) -> Measured:
  rows = run("memory", **_MEMORY[setting.scale])
  return Measured(rows, {} if setting.scale == "tiny" else {"memory": draw_memory(rows)})


def fitted_memory(rows: Sequence[Row]) -> tuple[Array, float]:
  """(a, b, c) of a + b (M + K - 1)/M + c/(K M) by least squares over K of 2 and more, re-materialised, and R²."""
  own = [row for row in rows if row["remat"] == "yes" and row["K"] > 1]
  K, M, values = (np.array([row[name] for row in own], np.float64) for name in ("K", "M", "mib"))
  design = np.stack([np.ones_like(K), (M + K - 1) / M, 1 / (K * M)], axis=1)
  solution = np.linalg.lstsq(design, values, rcond=None)[0]
  rest = values - design @ solution
  return solution, float(1 - rest @ rest / np.square(values - values.mean()).sum())


def judge_memory(rows: Sequence[Row], scale: str) -> Judged:
  def mib(K: int, M: int, remat: str = "yes") -> float:
    (value,) = column(rows, "mib", K=K, M=M, remat=remat)
    return value

  if scale == "tiny":
    ratio = mib(2, 8) / mib(2, 1)
    return Judged(verdict(ratio < 0.5), f"8 micro-batches take {ratio:.2f} of the memory of one")
  plain, best = mib(0, 1, "no"), mib(8, 16)
  (a, b, c), r2 = fitted_memory(rows)
  nothing_saved = mib(1, 1) >= 0.98 * plain
  return Judged(
    verdict(best <= 0.07 * plain and r2 >= 0.98 and nothing_saved),
    f"{best:.1f} of {plain:.0f} MiB (K = 8, M = 16); {a:.1f} + {b:.2f} (M + K - 1)/M + {c:.0f}/(K M), R² {r2:.3f}; "
    f"K = M = 1 takes {mib(1, 1):.0f}",
  )


def draw_memory(rows: Sequence[Row]) -> Figure:
  """Memory a device against M, with re-materialisation and without, a colour for each K."""
  figure, (axes,) = drawing.new_figure(height=4.6)
  handles = []
  for k, stages in enumerate(sorted({row["K"] for row in rows} - {0})):
    for remat, dashes in (("no", DASHES[1]), ("yes", DASHES[0])):
      own = select(rows, K=stages, remat=remat)
      axes.plot(column(own, "M"), column(own, "mib"), color=OKABE_ITO[k], marker=MARKERS[k], linestyle=dashes)
    handles.append(drawing.handle(f"K = {stages}", colour=OKABE_ITO[k], marker=MARKERS[k], dashes=""))
  (plain,) = column(rows, "mib", K=0)
  axes.axhline(plain, color="black", linewidth=0.9, linestyle=DASHES[2])
  handles += [
    drawing.handle("re-materialised", colour="black"), drawing.handle("not", colour="black", dashes=DASHES[1]),
    drawing.handle("no pipeline", colour="black", dashes=DASHES[2]),
  ]  # fmt: skip
  axes.set_xscale("log", base=2)
  axes.set_yscale("log")
  axes.set_xlabel("Micro-batches M")
  axes.set_ylabel("Temporaries (MiB a device)")
  drawing.legend(figure, handles, columns=4)
  return figure


# The bubble

_SIZES = {"tiny": ((2, 4),), "small": tuple((k, m) for k in (2, 4, 8) for m in (8, 16, 32))}


def measure_bubble(setting: Setting) -> Measured:
  rows: list[dict[str, Any]] = []
  for K, M in _SIZES[setting.scale]:
    for name, virtual in (("gpipe", 1), ("1f1b", 1), ("circular", 2), ("interleaved", 2), ("zb_h1", 1), ("zb_h2", 1)):
      found = schedule.simulate(name, stages=K, micro=M, virtual=virtual)
      forward = max(event.end for event in found.events if event.work.kind == "F")
      own = ticks(Plan(M, (1,) * (K * virtual), virtual), stages=K)
      rows.append({
        "schedule": name, "K": K, "M": M, "V": virtual, "idle": found.idle_share, "bubble": found.bubble,
        "peak": found.peak(0), "formula": (K - 1) / (virtual * M + K - 1),
        "ticks_ours": own if name in ("gpipe", "circular") else None,
        "ticks_simulated": forward if name in ("gpipe", "circular") else None,
      })  # fmt: skip
  figures = {} if setting.scale == "tiny" else {"schedules": draw_schedules(), "idle": draw_idle()}
  return Measured(rows, figures)


def judge_bubble(rows: Sequence[Row], scale: str) -> Judged:
  plain = [row for row in rows if not row["schedule"].startswith("zb")]
  off = max(abs(row["idle"] - row["formula"]) for row in plain)
  # The bubble of 1F1B is 3 (K - 1) units.
  conditions = {
    "ticks of ours": lambda row: row["ticks_ours"] == row["ticks_simulated"],
    "M held by GPipe": lambda row: row["schedule"] != "gpipe" or row["peak"] == row["M"],
    "min(M, K) by 1F1B": lambda row: row["schedule"] != "1f1b" or row["peak"] == min(row["M"], row["K"]),
    "ZB-H1 a third of 1F1B's bubble": lambda row: row["schedule"] != "zb_h1" or row["bubble"] == row["K"] - 1,
    "ZB-H2 no bubble": lambda row: row["schedule"] != "zb_h2" or abs(row["bubble"]) < 1e-9,
  }
  broken = {name: [row for row in rows if not holds(row)] for name, holds in conditions.items()}
  K, M = rows[-1]["K"], rows[-1]["M"]
  (last,) = column(rows, "idle", schedule="gpipe", K=K, M=M)
  finding = f"idle shares off by {off:.0e} at most (K = {K}, M = {M}: {last:.4f}); " + ", ".join(
    f"{name}: " + (", ".join(f"not at K = {row['K']}, M = {row['M']}" for row in where) or "yes")
    for name, where in broken.items()
  )
  return Judged(verdict(off < 1e-12 and not any(broken.values())), finding)


def draw_schedules() -> Figure:
  """Who works when, 4 stages and 8 micro-batches: forward dark, backward lighter, backward for the weights palest."""
  names = (("gpipe", 1), ("1f1b", 1), ("interleaved", 2), ("zb_h1", 1), ("zb_h2", 1))
  figure, panels = drawing.new_figure(rows=len(names), height=7.2, width=6.6)
  colours = {"F": "#23527c", "B": "#7fb0d8", "W": "#d9c27a"}
  for axes, (name, virtual) in zip(panels, names, strict=True):
    found = schedule.simulate(
      name, stages=4, micro=8, virtual=virtual, forward=1 / virtual, backward=1 / virtual, weights=1 / virtual
    )
    for event in found.events:
      axes.barh(
        event.stage, event.end - event.start, left=event.start, height=0.86, color=colours[event.work.kind],
        edgecolor="white", linewidth=0.4,
      )  # fmt: skip
    axes.set_yticks(range(4), [str(k) for k in range(4)])
    axes.invert_yaxis()
    axes.set_xlim(0, 36)
    axes.set_ylabel("Stage")
    axes.set_title(f"{name.replace('_', '-')}: idle {100 * found.idle_share:.1f} %", loc="left", fontsize=8.5)
  panels[-1].set_xlabel("Time (in units of one forward pass of a cell)")
  handles = [
    drawing.handle(label, colour=colours[kind], marker="s", dashes="", size=8)
    for kind, label in (("F", "forward"), ("B", "backward (with weights where not split)"), ("W", "for the weights"))
  ]
  drawing.legend(figure, handles)
  return figure


def draw_idle() -> Figure:
  """The idle share of GPipe against M, and that of the circular schedule with two cells a stage."""
  figure, (axes,) = drawing.new_figure()
  micro = np.array([8, 16, 32, 64])
  handles = []
  for k, K in enumerate((2, 4, 8)):
    for name, virtual, dashes in (("gpipe", 1, DASHES[0]), ("circular", 2, DASHES[1])):
      values = [100 * schedule.simulate(name, stages=K, micro=int(m), virtual=virtual).idle_share for m in micro]
      axes.plot(micro, values, color=OKABE_ITO[k], marker=MARKERS[k], linestyle=dashes)
    handles.append(drawing.handle(f"K = {K}", colour=OKABE_ITO[k], marker=MARKERS[k], dashes=""))
  handles += [
    drawing.handle("GPipe", colour="black"),
    drawing.handle("circular, V = 2", colour="black", dashes=DASHES[1]),
  ]
  axes.set_xscale("log", base=2)
  axes.set_ylim(0, None)
  axes.set_xlabel("Micro-batches M")
  axes.set_ylabel("Idle share (%)")
  drawing.legend(figure, handles)
  return figure


# Balance

_COSTS = (2, 3, 5, 7, 11, 13, 17, 19, 23, 29)
_BALANCE_MICRO = {"tiny": (4,), "small": (8, 32, 128)}


def measure_balance(setting: Setting) -> Measured:
  cuts = {
    "equal counts": (3, 3, 2, 2), "smallest maximum": partition.smallest_maximum(_COSTS, 4),
    "smallest variance": partition.smallest_variance(_COSTS, 4),
  }  # fmt: skip
  rows: list[dict[str, Any]] = []
  for M in _BALANCE_MICRO[setting.scale]:
    for name, counts in cuts.items():
      costs = partition.cell_costs(_COSTS, counts)
      found = schedule.simulate("gpipe", stages=4, micro=M, costs=costs)
      rows.append({"cut": name, "M": M, "largest": max(costs), "makespan": found.makespan, "total": sum(costs)})
  return Measured(rows)


def judge_balance(rows: Sequence[Row], scale: str) -> Judged:
  ratios, predicted = [], []
  clocks = []
  for M in sorted({row["M"] for row in rows}):
    best, equal = (select(rows, M=M, cut=cut)[0] for cut in ("smallest maximum", "equal counts"))
    ratios.append(equal["makespan"] / best["makespan"])
    # A pipeline that is never starved takes (M - 1) times its slowest cell and every cell once, forwards and backwards alike.
    predicted.append(((M - 1) * equal["largest"] + equal["total"]) / ((M - 1) * best["largest"] + best["total"]))
    clocks.append(best["makespan"])
  off = max(abs(a / b - 1) for a, b in zip(ratios, predicted, strict=True))
  (largest,) = {row["largest"] for row in select(rows, cut="smallest maximum")}
  return Judged(
    verdict(largest == 41 and min(ratios) > 1 and off < 0.02),
    f"largest cell {largest:g} (equal counts 52); {ratios[-1]:.3f} times faster with M = {max(row['M'] for row in rows)}, "
    f"off the prediction by {100 * off:.1f} %",
  )


# Batch normalisation


def measure_norms(setting: Setting) -> Measured:
  return Measured(run("norms", micro=[4] if setting.scale == "tiny" else [2, 4, 8], seeds=list(setting.seeds)))


def judge_norms(rows: Sequence[Row], scale: str) -> Judged:
  batch, layer = (column(rows, "loss", norm=norm) for norm in ("batch", "layer"))
  by_layer = max(layer + column(rows, "gradient", norm="layer"))
  return Judged(
    verdict(min(batch) > 1e-4 and by_layer < 1e-12),
    f"relative difference of the loss to one micro-batch: batch norm {min(batch):.1e} to {max(batch):.1e}, layer norm {max(layer):.0e}",
  )


CLAIMS = (
  Claim(
    "exact_gradients", "The update does not depend on the number of stages or of micro-batches.", "Section 2.3",
    "consistent for any number of partitions (no number)",
    {
      "tiny": "float64, K = 2, M = 4: gradients within 1e-12 of the plain model's, two steps of SGD within 1e-10, M + K - 1 ticks",
      "small": "float64, K in 1, 2, 4, 8 and M in K, 2K, 4K: gradients within 1e-12, 20 steps of SGD within 1e-10, M + K - 1 ticks",
    },
    measure_exact, judge_exact, by=("K", "M", "ticks"), exact=True,
  ),
  Claim(
    "batch_norm", "Batch statistics make the result depend on M; layer statistics do not.", "Section 2.1",
    "statistics are taken over each micro-batch (no number)",
    {
      scale: "4 convolutions in float64, loss with M micro-batches against one: batch norm above 1e-4 of it in every seed, layer norm "
      "(and its gradient) below 1e-12"
      for scale in ("tiny", "small")
    },
    measure_norms, judge_norms, by=("M",),
  ),
  Claim(
    "memory", "Re-materialised, activations take O(N + (L/K)(N/M)) a device.", "Section 2.3, table 1",
    "1.8B parameters on 8 devices where 82M fit one (AmoebaNet)",
    {
      "tiny": "K = 2: 8 micro-batches take less than half of the memory of one",
      "small": "K = 8, M = 16 at most .07 of no pipeline; a + b (M + K - 1)/M + c/(K M) with R² of .98 or more over K of 2 and "
      "more; K = M = 1 saves nothing (at least .98)",
    },
    measure_memory, judge_memory, by=("K", "M"), exact=True,
  ),
  Claim(
    "bubble", "The idle share is (K - 1)/(M + K - 1); later schedules shrink it or what is held.", "Section 2.3, figure 2",
    "negligible for M of 4 K and more",
    {
      "tiny": "K = 2, M = 4: as at small scale",
      "small": "simulated idle shares of GPipe, 1F1B, circular and interleaved (V = 2) within 1e-12 of (K - 1)/(V M + K - 1); ticks of "
      "our pipeline equal the simulator's; held at once on the first stage M (GPipe) and min(M, K) (1F1B); ZB-H1 a third of the "
      "bubble of 1F1B, ZB-H2 none",
    },
    measure_bubble, judge_bubble, by=("K", "M", "V"), exact=True,
  ),
  Claim(
    "balance", "Cells cut by cost keep the clock of the pipeline at its slowest cell.", "Section 2.1", "no number",
    {
      scale: "costs 2, 3, 5, …, 29 on 4 stages: the largest cell is 41; in the simulator this cut is faster than equal counts by the "
      "ratio that ((M - 1) slowest cell + all cells) predicts, within 2 %"
      for scale in ("tiny", "small")
    },
    measure_balance, judge_balance, by=("M",), exact=True,
  ),
)  # fmt: skip

"""Claims of "Deep Residual Learning for Image Recognition": degradation, shortcut options, small responses, faster convergence.

He, Zhang, Ren, Sun 2015, https://arxiv.org/abs/1512.03385. At small scale: scikit-learn's digits (1,500 + 297 pictures of 8x8;
`scripts/fetch_data digits`), widths 8, 16, 32, batches of 64 with shifts of one pixel, 300 steps at rate .02, a tenth of it from
step 150 and a hundredth from 225. At paper scale: CIFAR-10 and ImageNet through TFDS.

Expected at small scale (pilots): mean training loss of the last 30 steps .5 to .8 plain-20, 2.0 to 2.2 plain-56, .2 ResNet-20 and
ResNet-56. That the deeper residual net overtakes the shallower one needs the long runs of `paper`.
"""

import re
from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from experiments import resnet_figures as figures
from ilya_jax.claims import Claim, Judged, Measured, Setting
from ilya_jax.claims.claim import Row, column, select, verdict
from ilya_jax.claims.trainings import Trained
from ilya_jax.config import load_config
from ilya_jax.data.images import standardise
from ilya_jax.models.resnet import count, from_config
from ilya_jax.nn.batch_norm import BatchNorm

Array = np.ndarray
Jobs = dict[str, tuple[str, dict[str, Any]]]

CONFIG = "configs/resnet.py"
NETS = {"plain": "none", "residual": "A"}
OPTIONS = ("A", "B", "C")
DEPTHS = {"tiny": (14,), "small": (20, 56), "paper": (20, 32, 44, 56, 110)}
CHANCE = float(np.log(10))
# Weights of projections and their norms in ResNet-20: where the width doubles, and in the seven other units.
PROJECTED_B = sum(c * 2 * c + 2 * 2 * c for c in (16, 32))
PROJECTED_C = sum(units * (c * c + 2 * c) for units, c in ((3, 16), (2, 32), (2, 64)))
LAST = 0.1  # of the steps: what a training loss is the mean of
# How runs are executed, not what they are; the same for all claims, so that they share runs.
QUICK = {"mesh.data": 1, "execution.tensorboard": False}
LOGGED = {
  "tiny": {"log_every": 1},
  "small": {"log_every": 1, "eval.every": 20},
  "paper": {"log_every": 50, "eval.every": 1000},
}


def job(scale: str, *, net: str, depth: int, seed: int) -> tuple[str, dict[str, Any]]:
  """A run of configs/resnet.py. net: plain, residual, or an option of its shortcuts."""
  changes = {"model.shortcut": NETS.get(net, net), "model.depth": depth, "seed": seed, **LOGGED[scale]}
  if scale == "paper":
    if depth >= 110:
      changes["schedule.warmup_steps"] = 400
    return CONFIG, changes
  if scale == "tiny":
    return f"{CONFIG}:tiny", {**QUICK, **changes, "batch_size": 16}
  return f"{CONFIG}:digits", {**QUICK, **changes}


def imagenet_job(*, net: str, depth: int, seed: int) -> tuple[str, dict[str, Any]]:
  """A run on ImageNet."""
  return f"{CONFIG}:imagenet", {
    "model.shortcut": NETS.get(net, net), "model.depth": depth, "seed": seed, "log_every": 100, "eval.every": 5000,
  }  # fmt: skip


def name_of(net: str, depth: int, seed: int) -> str:
  """A run's name within a claim."""
  return f"{net} {depth} {seed}"


def last_mean(run: Trained, metric: str) -> float:
  """The mean of a metric over the last tenth of the logged training steps."""
  values = run.curve(metric)[1]
  return float(np.mean(values[-max(round(LAST * len(values)), 1) :]))


def early_mean(run: Trained, metric: str) -> float:
  """The mean of a metric over the logged training steps from 5 to 10 % of the run."""
  values = run.curve(metric)[1]
  return float(np.mean(values[len(values) // 20 : max(len(values) // 10, 1)]))


def row_of(run: Trained, *, net: str, depth: int, seed: int) -> dict[str, Any]:
  """What is read off a run: training loss and errors (shares) at its end, and early on."""
  return {
    "seed": seed, "net": net, "depth": depth, "train_loss": last_mean(run, "loss"), "train_error": last_mean(run, "error"),
    "early_loss": early_mean(run, "loss"), "test_error": run.evaluation("test", "error"),
  }  # fmt: skip


def trained(
  setting: Setting, nets: Sequence[str], depths: Sequence[int]
) -> tuple[dict[str, Trained], list[dict[str, Any]]]:
  """The runs of these nets, depths and the setting's seeds, by `name_of`, and a row for each."""
  cases = [(net, depth, seed) for net in nets for depth in depths for seed in setting.seeds]
  runs = setting.train({
    name_of(net, depth, seed): job(setting.scale, net=net, depth=depth, seed=seed) for net, depth, seed in cases
  })  # fmt: skip
  rows = [row_of(runs[name_of(n, d, s)], net=n, depth=d, seed=s) for n, d, s in cases]
  return runs, rows


def median(rows: Sequence[Row], name: str, **conditions: Any) -> float:
  """The median over seeds."""
  return float(np.median(column(rows, name, **conditions)))


def means(rows: Sequence[Row], name: str, *, by: str, **conditions: Any) -> dict[Any, float]:
  """The mean over seeds for each value of a field."""
  values = list(dict.fromkeys(row[by] for row in select(rows, **conditions)))
  return {value: float(np.mean(column(rows, name, **{by: value}, **conditions))) for value in values}


def standard_error(one: Sequence[float], other: Sequence[float]) -> float:
  """Of the difference of two means over seeds."""
  return float(np.sqrt(np.var(one, ddof=1) / len(one) + np.var(other, ddof=1) / len(other)))


# Degradation


def measure_degradation(setting: Setting) -> Measured:
  """Training losses and errors of plain and residual nets of all depths."""
  runs, rows = trained(setting, tuple(NETS), DEPTHS[setting.scale])
  if setting.scale == "tiny":
    return Measured(rows)
  return Measured(rows, {"degradation": figures.draw_curves(runs, rows)})


def judge_degradation(rows: Sequence[Row], scale: str) -> Judged:
  """See the claim's criteria."""
  if scale == "tiny":
    plain, residual = (median(rows, "train_loss", net=net, depth=14) for net in NETS)
    return Judged(verdict(residual < plain), f"training loss {plain:.2f} plain, {residual:.2f} residual")
  shallow, deep = 20, 56
  measure = "train_error" if scale == "paper" else "train_loss"
  plain, residual = ({depth: median(rows, measure, net=net, depth=depth) for depth in (shallow, deep)} for net in NETS)
  finding = "; ".join(
    f"{net} {found[shallow]:.2f} at {shallow} layers, {found[deep]:.2f} at {deep}"
    for net, found in (("plain", plain), ("residual", residual))
  )
  if scale == "small":
    holds = (
      plain[deep] > plain[shallow] + 0.5
      and residual[deep] < plain[deep] - 1.0
      and residual[shallow] < plain[shallow]
      and residual[deep] < residual[shallow] + 0.2
    )
    return Judged(verdict(holds), f"training loss {finding}")
  tests = [median(rows, "test_error", net="residual", depth=depth) for depth in (20, 110)]
  holds = (
    plain[deep] > plain[shallow]
    and residual[deep] < residual[shallow]
    and median(rows, "train_error", net="plain", depth=110) > 0.6
    and tests[1] < tests[0]
  )
  return Judged(
    verdict(holds), f"training error {finding}; residual test error {tests[0]:.2%} at 20, {tests[1]:.2%} at 110"
  )


# Shortcut options


def measure_options(setting: Setting) -> Measured:
  """Errors of nets with options A, B and C; at tiny scale the parameters of ResNet-20 for CIFAR-10 with each."""
  if setting.scale == "paper":
    return _measure_imagenet(setting, OPTIONS, depth=34)
  if setting.scale == "tiny":
    nets = {net: from_config(load_config(CONFIG, {"model.shortcut": net}), classes=10) for net in OPTIONS}
    counts = {name: count(net, side=32, channels=3).total for name, net in nets.items()}
    return Measured([{"seed": setting.seeds[0], "net": net, "count": number} for net, number in counts.items()])
  runs, rows = trained(setting, OPTIONS, (20,))
  return Measured(rows, {"options": figures.draw_options(runs, rows)})


def _measure_imagenet(setting: Setting, nets: Sequence[str], *, depth: int) -> Measured:
  cases = [(net, seed) for net in nets for seed in setting.seeds]
  runs = setting.train({name_of(n, depth, s): imagenet_job(net=n, depth=depth, seed=s) for n, s in cases})
  return Measured([row_of(runs[name_of(n, depth, s)], net=n, depth=depth, seed=s) for n, s in cases])


def judge_options(rows: Sequence[Row], scale: str) -> Judged:
  """See the claim's criteria."""
  if scale == "tiny":
    counts = [int(column(rows, "count", net=net)[0]) for net in OPTIONS]
    shown = ", ".join(f"{net} {number:,}" for net, number in zip(OPTIONS, counts, strict=True))
    return Judged(verdict(np.diff(counts).tolist() == [PROJECTED_B, PROJECTED_C]), f"parameters {shown}")
  errors = means(rows, "test_error", by="net")
  best, worst = min(errors, key=errors.__getitem__), max(errors, key=errors.__getitem__)
  spread = errors[worst] - errors[best]
  allowed = 0.01 if scale == "small" else 0.015
  noise = standard_error(*(column(rows, "test_error", net=net) for net in (worst, best)))
  decided = "holds" if spread < allowed else "does not hold" if spread > 2 * noise else "inconclusive"
  shown = ", ".join(f"{net} {100 * errors[net]:.2f}" for net in OPTIONS)
  return Judged(
    decided, f"test error {shown} %: at most {100 * spread:.2f} points apart (standard error {100 * noise:.2f})"
  )


# Responses


def responses(run: Trained) -> dict[str, float]:
  """Standard deviation of what each 3x3 layer gives after its norm, before ReLU or addition, on the held-out pictures.

  By layer, in order: "stem/norm1", "stage1_unit1/norm1", …; with the moving averages.
  """
  loaded = run.load()
  info = loaded.source.info
  model = from_config(loaded.config, classes=info["classes"])
  images = jnp.concatenate([
    jnp.asarray(loaded.source.batch(k, split="test")["image"]) for k in range(loaded.source.eval_batches["test"])
  ])  # fmt: skip

  @jax.jit
  def deviations(params, state):
    ready = standardise(images, mean=info["mean"], std=info["std"])
    caught = lambda module, _: isinstance(module, BatchNorm)  # noqa: E731
    _, found = model.apply(
      {"params": params, **state}, ready, train=False, capture_intermediates=caught, mutable=["intermediates"]
    )
    flat = jax.tree_util.tree_leaves_with_path(found["intermediates"])
    return {f"{path[0].key}/{path[1].key}": leaf.std() for path, leaf in flat}

  found = deviations(loaded.params, loaded.model_state)
  named = {name: float(value) for name, value in found.items() if "projection" not in name}
  return dict(sorted(named.items(), key=lambda item: _place(item[0])))


def _place(name: str) -> tuple[int, int, int]:
  """Where a layer stands in the net."""
  member, norm = name.split("/")
  stage, unit = (re.findall(r"\d+", member) + [0, 0])[:2]
  return int(stage), int(unit), int(norm.removeprefix("norm"))


def measure_responses(setting: Setting) -> Measured:
  """Median response of the units' last norms, and of all 3x3 layers, in the nets of the first claim."""
  depths = (20, 56, 110) if setting.scale == "paper" else DEPTHS[setting.scale]
  runs, trained_rows = trained(setting, tuple(NETS), depths)
  curves = {}
  rows: list[dict[str, Any]] = []
  for row in trained_rows:
    condition = {"net": row["net"], "depth": row["depth"], "seed": row["seed"]}
    found = responses(runs[name_of(**condition)])
    curves[name_of(**condition)] = list(found.values())
    units = [value for name, value in found.items() if name.endswith("norm2")]
    rows.append({
      **condition, "unit_response": float(np.median(units)), "layer_response": float(np.median(list(found.values()))),
      "layers": len(found), "smallest": min(found.values()),
    })  # fmt: skip
  return Measured(rows, {} if setting.scale == "tiny" else {"responses": figures.draw_responses(curves, rows)})


def judge_responses(rows: Sequence[Row], scale: str) -> Judged:
  """See the claim's criteria."""
  shown = ", ".join(
    f"{net}-{depth} {value:.2f}"
    for net in NETS
    for depth, value in means(rows, "unit_response", by="depth", net=net).items()
  )
  finding = f"median response of the units {shown}"
  if scale == "tiny":
    holds = all(row["layers"] == row["depth"] - 1 and 0 < row["smallest"] < np.inf for row in rows)
    return Judged(verdict(holds), finding)
  response = {(n, d): column(rows, "unit_response", net=n, depth=d) for n in NETS for d in (20, 56)}
  pairs = [
    (("residual", 56), ("residual", 20)), (("residual", 20), ("plain", 20)), (("residual", 56), ("plain", 56)),
  ]  # fmt: skip
  differences = [np.subtract(response[small], response[large]) for small, large in pairs]
  if all((each < 0).all() for each in differences):
    return Judged("holds", finding)
  against = any((each > 0).all() for each in differences)
  return Judged("does not hold" if against else "inconclusive", finding)


# Convergence


def measure_convergence(setting: Setting) -> Measured:
  """Early loss and final error of the shallowest nets, plain and residual."""
  if setting.scale == "paper":
    return _measure_imagenet(setting, tuple(NETS), depth=18)
  runs, rows = trained(setting, tuple(NETS), (14 if setting.scale == "tiny" else 8,))
  return Measured(rows, {} if setting.scale == "tiny" else {"convergence": figures.draw_curves(runs, rows)})


def judge_convergence(rows: Sequence[Row], scale: str) -> Judged:
  """See the claim's criteria."""
  if scale == "tiny":
    losses = means(rows, "train_loss", by="net")
    shown = ", ".join(f"{net} {loss:.2f}" for net, loss in losses.items())
    return Judged(verdict(all(loss < CHANCE - 0.1 for loss in losses.values())), f"training loss {shown}")
  early, errors = ({net: column(rows, name, net=net) for net in NETS} for name in ("early_loss", "test_error"))
  faster = np.subtract(early["residual"], early["plain"])
  apart = abs(float(np.mean(errors["residual"]) - np.mean(errors["plain"])))
  noise = standard_error(errors["residual"], errors["plain"])
  finding = (
    f"loss at 5 to 10 % of the steps {np.mean(early['plain']):.2f} plain, {np.mean(early['residual']):.2f} residual; "
    f"test error {100 * np.mean(errors['plain']):.2f} and {100 * np.mean(errors['residual']):.2f} %"
  )
  equal = apart < max(0.01, 2 * noise)
  if (faster < 0).all() and equal:
    return Judged("holds", finding)
  return Judged("inconclusive" if equal and faster.mean() < 0 else "does not hold", finding)


_TAIL = "mean over the last tenth of the steps"
CLAIMS = (
  Claim(
    "degradation", "Deeper plain nets train worse; residual nets do not", "section 4.2, Figure 6",
    "CIFAR-10: plain-56 has a higher training error than plain-20, plain-110 above 60 %; ResNet test error 8.75 % at 20 layers, "
    "6.97 % at 56, 6.43 % at 110",
    {
      "tiny": f"generated pictures, 14 layers of width 4 and more, 100 steps: training loss ({_TAIL}), residual below plain",
      "small": f"digits, training loss ({_TAIL}), medians over seeds: plain-56 above plain-20 + .5; ResNet-56 below plain-56 - 1; "
               "ResNet-20 below plain-20; ResNet-56 below ResNet-20 + .2",
      "paper": f"CIFAR-10, 64,000 steps, medians: training error ({_TAIL}) of plain-56 above plain-20's, of ResNet-56 below "
               "ResNet-20's, of plain-110 above 60 %; test error of ResNet-110 below ResNet-20's",
    },
    measure_degradation, judge_degradation, by=("depth",),
  ),
  Claim(
    "shortcut_options", "Identity shortcuts suffice: options A, B and C differ little", "section 4.1, Table 3",
    "ImageNet, 34 layers, top-1 error (10 crops): A 25.03, B 24.52, C 24.19 %",
    {
      "tiny": "ResNet-20 for CIFAR-10: from option A to B 2,752 parameters are added, to C 11,488 more (a projection of c channels to d "
              "and its norm: c d + 2 d)",
      "small": "digits, 20 layers: mean test errors less than 1 point apart. Otherwise inconclusive where the largest difference is "
               "within 2 standard errors",
      "paper": "ImageNet, 34 layers, top-1 error of one crop: means less than 1.5 points apart; otherwise as at small scale",
    },
    measure_options, judge_options, by=("depth",),
  ),
  Claim(
    "responses", "Residual nets have smaller responses than plain ones, the smaller the deeper", "section 4.2, Figure 7",
    "standard deviations of the layers' outputs after their norm: ResNet-20, 56, 110 below plain-20, 56, and falling with depth",
    {
      "tiny": "generated pictures, 14 layers: every 3x3 layer has a finite response above 0",
      "small": "digits, nets of the first claim, median over units of the deviation of their last norm's output on held-out "
               "pictures: ResNet-56 below ResNet-20, ResNet-20 below plain-20, ResNet-56 below plain-56, each in every seed. Does "
               "not hold where one of the three is the other way round in every seed; inconclusive otherwise",
      "paper": "CIFAR-10, the same three comparisons",
    },
    measure_responses, judge_responses, by=("depth",),
  ),
  Claim(
    "convergence", "Where depth is no obstacle plain and residual nets end alike, but the residual one converges faster",
    "section 4.1, Table 2, Figure 4", "ImageNet, 18 layers, top-1 error: plain 27.94, ResNet 27.88 %; ResNet-18 converges faster",
    {
      "tiny": f"generated pictures, 14 layers, 100 steps: training loss ({_TAIL}) of both below ln 10 - .1",
      "small": "digits, 8 layers: mean training loss over steps 5 to 10 % of the run lower with shortcuts in every seed, and mean test "
               "errors less than 1 point or 2 standard errors apart; inconclusive where the former holds on the mean alone",
      "paper": "ImageNet, 18 layers, top-1 error of one crop: the same two conditions",
    },
    measure_convergence, judge_convergence, by=("depth",),
  ),
)  # fmt: skip

"""Critical batch size: known B_crit, S_min, E_min and laws recovered from synthetic loss curves, and what must not be identified."""

import csv
import json

import numpy as np
import pytest

from ilya_jax import cli
from ilya_jax.errors import UserError
from ilya_jax.scaling import critical_batch, hyperbola, noise_scale, plots_batch, steps_to_loss
from ilya_jax.scaling.rows import Options
from ilya_jax.scaling.table import read_table

N_C, ALPHA_N, S_C, ALPHA_S, B_STAR, ALPHA_B = 6.5e8, 0.077, 2.1e3, 0.76, 2e8, 0.21
SIZES = (1e5, 3e5, 1e6)
BATCHES = 2.0 ** np.arange(9, 17)
QUICK = Options(bootstrap=100, starts=8)


def floor(N):
  return (N_C / N) ** ALPHA_N


def steps_at(L, N):
  """S_min of Kaplan's eq. 1.6."""
  return S_C * (L - floor(N)) ** (-1 / ALPHA_S)


def by_loss(L, N):
  return B_STAR / L ** (1 / ALPHA_B)


def by_size(L, N):
  return 2.0 * N**0.75


def curve(N, B, critical, *, count=40, noise=0.0, rng=None, lowest=1.0):
  """Steps [k] and losses [k] of a run that obeys L(N, S_min) with S = S_min (1 + B_crit/B)."""
  L = floor(N) + np.geomspace(8, lowest, 4000)
  S = steps_at(L, N) * (1 + critical(L, N) / B)
  at = np.geomspace(S[0] * 1.01, S[-1] * 0.999, count)
  loss = np.exp(np.interp(np.log(at), np.log(S), np.log(L)))
  if noise:  # of each measurement, and of the run as a whole
    loss = loss * np.exp(noise * (rng.standard_normal(count) + rng.standard_normal()))
  return at, loss


def write(path, *, sizes=SIZES, batches=BATCHES, critical=by_loss, rates=(1.0,), **more):
  """A table of runs; a rate other than 1 makes a run slower by that factor."""
  rows = []
  for N in sizes:
    for B in batches:
      for rate in rates:
        for at, loss in zip(*curve(N, B, critical, **more), strict=True):
          S = at * rate
          rows.append(
            {"cell": f"{N:g}-{B:g}-{rate}", "lr": rate, "N": N, "D": S * B, "C": 6 * N * S * B, "step": S, "loss": loss}
          )
  with path.open("w", newline="") as file:
    writer = csv.DictWriter(file, list(rows[0]))
    writer.writeheader()
    writer.writerows(rows)
  return path


def analysed(path, options=QUICK, **more):
  table = read_table([path])
  return critical_batch.analyse(table, np.ones(table.n_rows, bool), options=options, **more)


@pytest.fixture(scope="module")
def exact(tmp_path_factory):
  """The record of curves without noise."""
  return analysed(write(tmp_path_factory.mktemp("exact") / "t.csv"), targets=(9.0, 7.0, 5.5, 4.5))


def test_b_crit_s_min_and_e_min_are_recovered(exact):
  assert len(exact["fits"]) == 4 * len(SIZES)
  for found in exact["fits"]:
    L, N = found["target"], found["N"]
    truth = {"B_crit": by_loss(L, N), "S_min": steps_at(L, N), "E_min": by_loss(L, N) * steps_at(L, N)}
    for name, value in truth.items():
      assert found["parameters"][name] == pytest.approx(value, rel=5e-3)
      assert found["intervals"][name]["identified"]
    assert not found["few"]
    assert found["n_batches"] == len(BATCHES)


def test_the_identity_of_steps_and_tokens_holds(exact):
  """Kaplan's eq. 5.1 at every measured point, to the error of the interpolation."""
  for found in exact["fits"]:
    least, tokens = found["parameters"]["S_min"], found["parameters"]["E_min"]
    products = [(p["S"] / least - 1) * (p["E"] / tokens - 1) for p in found["points"] if 0.1 < p["S"] / least - 1 < 10]
    assert products
    np.testing.assert_allclose(products, 1, rtol=0.03)


def test_a_run_at_b_crit_takes_twice_of_everything():
  B, steps, tokens = 512.0, 300.0, 1e9
  assert critical_batch.s_min(2 * steps, B=B, B_crit=B) == steps
  assert critical_batch.c_min(2 * tokens, B=B, B_crit=B) == tokens
  at = np.geomspace(1, 1e6, 13)
  made = hyperbola.fit(at, steps * (1 + B / at), np.ones((1, 13)))
  fitted = {name: value[0] for name, value in made.values().items()}
  assert fitted == pytest.approx({"B_crit": B, "S_min": steps, "E_min": B * steps}, rel=1e-4)
  S = fitted["S_min"] * (1 + fitted["B_crit"] / fitted["B_crit"])
  assert fitted["B_crit"] * S == pytest.approx(2 * fitted["E_min"])


def test_eq_5_1_holds_identically_for_what_eq_5_4_gives():
  rng = np.random.default_rng(0)
  S, B, B_crit = np.exp(rng.uniform(0, 12, (3, 100)))
  least = critical_batch.s_min(S, B=B, B_crit=B_crit)
  np.testing.assert_allclose((S / least - 1) * (B * S / (B_crit * least) - 1), 1, rtol=1e-9)


def test_the_law_of_the_loss_and_of_the_converted_checkpoints_is_recovered(exact):
  assert exact["laws"]["L"]["parameters"] == pytest.approx({"B_star": B_STAR, "alpha_B": ALPHA_B}, rel=0.02)
  assert exact["comparison"]["preferred"] == "L"
  assert exact["comparison"]["between_sizes"] < 0.02 < 1 < exact["comparison"]["between_targets"]
  truth = {"N_c": N_C, "alpha_N": ALPHA_N, "S_c": S_C, "alpha_S": ALPHA_S}
  assert exact["forms"]["kaplan_ns"]["parameters"] == pytest.approx(truth, rel=0.05)
  assert exact["forms"]["kaplan_c"]["parameters"]["alpha_C"] > 0
  columns = {name: np.array(values) for name, values in exact["checkpoints"].items()}
  assert len(columns["S_min"]) == len(SIZES) * len(BATCHES) * 40
  np.testing.assert_allclose(columns["C_min"], 6 * columns["N"] * columns["S_min"] * columns["B_crit"], rtol=1e-9)


@pytest.mark.parametrize(("critical", "law"), [(by_loss, "L"), (by_size, "N")])
def test_the_comparison_prefers_the_true_law(tmp_path, critical, law):
  path = write(tmp_path / "t.csv", critical=critical, noise=0.003, rng=np.random.default_rng(1))
  found = analysed(path, targets=(8.5, 7.0, 6.0, 5.0))["comparison"]
  errors = {name: each["mean"] for name, each in found["errors"].items()}
  assert found["preferred"] == law == min(errors, key=errors.get)
  assert found["share"] > 0.8


def test_one_size_cannot_tell_the_laws_apart(tmp_path):
  found = analysed(write(tmp_path / "t.csv", sizes=(1e5,)), targets=(9.0, 7.0, 5.5, 4.5))
  assert found["comparison"]["preferred"] is None
  assert "one size" in found["comparison"]["why"]
  assert found["laws"]["N"] is None


@pytest.mark.parametrize(("batches", "words", "known"), [
  (2.0 ** np.arange(1, 7), "far below B_crit", "E_min"), (2.0 ** np.arange(21, 27), "far above B_crit", "S_min"),
])  # fmt: skip
def test_batches_on_one_side_do_not_identify_b_crit(tmp_path, batches, words, known):
  """By loss 6.5 B_crit is 27,000 tokens: without noise the fit is exact, but all of it is extrapolation."""
  found = analysed(write(tmp_path / "t.csv", batches=batches), targets=(6.5,))
  for each in found["fits"]:
    identified = {name: interval["identified"] for name, interval in each["intervals"].items()}
    assert identified == {"B_crit": False, "S_min": False, "E_min": False} | {known: True}
    assert words in each["intervals"]["B_crit"]["why"]
  assert found["laws"] == {"L": None, "N": None, "D": None}
  assert found["converted"]


def test_few_batch_sizes_are_flagged_and_two_refused(tmp_path):
  found = analysed(write(tmp_path / "t.csv", batches=BATCHES[::2]), targets=(7.0,))
  assert all(each["few"] for each in found["fits"])
  with pytest.raises(UserError, match="2 batch sizes"):
    analysed(write(tmp_path / "t.csv", batches=BATCHES[:2]))


def test_intervals_of_noisy_tables_cover_the_truth():
  """60 tables of 7 batch sizes with noise in every measurement and run; nominal 95 %."""
  rng, target, N = np.random.default_rng(0), 7.0, 1e5
  truth = {"B_crit": by_loss(target, N), "S_min": steps_at(target, N)}
  truth["E_min"] = truth["B_crit"] * truth["S_min"]
  batches = 2.0 ** np.arange(10, 17)
  inside = dict.fromkeys(truth, 0)
  for _ in range(60):
    curves = [steps_to_loss.make_curve(*curve(N, B, by_loss, noise=0.005, rng=rng), N=N, B=B) for B in batches]
    steps = np.array([steps_to_loss.steps_to(each, np.array([target]))[0] for each in curves])
    weights = hyperbola.case_weights(np.zeros(len(steps)), rng, count=300)
    found = hyperbola.intervals(hyperbola.fit(batches, steps, weights), batches)
    for name, value in truth.items():
      inside[name] += found[name]["low"] <= value <= found[name]["high"]
  assert all(51 <= count <= 60 for count in inside.values()), inside  # of 60: 85 % is 2.9 s.e. under 95 %


def test_the_best_of_several_rates_counts(exact, tmp_path):
  path = write(tmp_path / "t.csv", rates=(1.0, 3.0))
  found = analysed(path, targets=(9.0, 7.0, 5.5, 4.5))
  assert found["runs"] == 2 * len(SIZES) * len(BATCHES)
  assert [each["parameters"] for each in found["fits"]] == [each["parameters"] for each in exact["fits"]]


def test_smoothing_is_monotone_exact_on_falling_curves_and_unbiased():
  at, loss = curve(1e5, 1024.0, by_loss)
  np.testing.assert_allclose(steps_to_loss.smooth(loss), loss, rtol=1e-12)
  rng = np.random.default_rng(0)
  offsets = []
  for _ in range(40):
    smoothed = steps_to_loss.smooth(loss * np.exp(0.05 * rng.standard_normal(len(loss))))
    assert (np.diff(smoothed) <= 1e-12).all()
    offsets.append(np.log(smoothed / loss)[5:-5].mean())
  assert abs(np.mean(offsets)) < 4 * np.std(offsets) / np.sqrt(40)


def test_steps_are_found_between_checkpoints_and_nowhere_else():
  made = steps_to_loss.make_curve(*curve(1e5, 1024.0, by_loss, count=25), N=1e5, B=1024.0)
  targets = np.array([9.0, 6.0, 4.0, 2.5, 20.0])
  expected = steps_at(targets, 1e5) * (1 + by_loss(targets, 1e5) / 1024.0)
  found = steps_to_loss.steps_to(made, targets)
  np.testing.assert_allclose(found[:3], expected[:3], rtol=2e-3)
  assert np.isnan(found[3:]).all()


def test_the_command_writes_record_section_and_figures(tmp_path, capsys):
  path = write(tmp_path / "t.csv", sizes=SIZES[:2], batches=BATCHES[::2])
  flags = ["--bootstrap", "20", "--starts", "4", "--form", "kaplan_c"]
  assert cli.main(["fit", str(path), "--out", str(tmp_path / "plain"), *flags]) == 0
  more = ["--critical-batch", "--batch-targets", "7,5.5,5"]
  assert cli.main(["fit", str(path), "--out", str(tmp_path / "out"), *flags, *more]) == 0
  plain, result = (json.loads((tmp_path / name / "fit.json").read_text()) for name in ("plain", "out"))
  found = result.pop("critical_batch")
  assert {**plain, "command": ""} == {**result, "command": ""}
  assert found["targets"] == [7.0, 5.5, 5.0]
  assert {"batch_hyperbolas.svg", "batch_critical.svg"} <= {
    file.name for file in (tmp_path / "out" / "figures").iterdir()
  }
  assert "Critical batch size" in (tmp_path / "out" / "report.html").read_text()
  assert "critical batch size in tokens" in capsys.readouterr().out


def test_figures_show_every_target_and_kaplan_where_units_agree(exact):
  figure = plots_batch.hyperbolas(exact, "nats per token")
  assert len(figure.axes) == len(SIZES)
  assert all(axes.get_xlabel() and axes.get_ylabel() for axes in figure.axes)
  labels = [
    text.get_text() for text in plots_batch.against_loss(exact, "nats per token", kaplan=True).legends[0].get_texts()
  ]
  assert any("Kaplan" in label for label in labels)
  without = plots_batch.against_loss(exact, "nats per byte", kaplan=False).legends[0].get_texts()
  assert not any("Kaplan" in text.get_text() for text in without)


@pytest.mark.parametrize(("flags", "words"), [
  (["--critical-batch", "--batch-targets", "0.1"], "--batch-targets"),
  (["--critical-batch", "--batch-targets", "x"], "--batch-targets"),
  (["--batch-targets", "7"], "--critical-batch"),
  (["--critical-batch", "--where", "step<2"], ""),
])  # fmt: skip
def test_bad_input_is_one_line(tmp_path, capsys, flags, words):
  path = write(tmp_path / "t.csv", sizes=SIZES[:1], batches=BATCHES[:3])
  assert cli.main(["fit", str(path), "--out", str(tmp_path / "out"), *flags]) == 2
  error = capsys.readouterr().err
  assert error.count("\n") == 1
  assert words in error
  assert not (tmp_path / "out").exists()


def test_a_run_whose_batch_changes_is_refused(tmp_path):
  path = tmp_path / "t.csv"
  path.write_text("cell,N,D,step,loss\na,1e5,1000,10,3\na,1e5,4000,20,2.5\na,1e5,9000,30,2\n")
  with pytest.raises(UserError, match="tokens per step in one run"):
    analysed(path)


def test_noise_scale_averages_both_before_it_divides(tmp_path):
  rng = np.random.default_rng(0)
  square, trace = 0.5 + 2 * rng.standard_normal(20_000), 40 + 100 * rng.standard_normal(20_000)
  rows = [
    {"step": k + 1, "split": "train", "loss": 2.0, "grad_sq_norm": float(s), "grad_trace": float(t)}
    for k, (s, t) in enumerate(zip(square, trace, strict=True))
  ]
  path = tmp_path / "metrics.jsonl"
  path.write_text(
    "".join(json.dumps(row) + "\n" for row in [{"step": 1, "split": "train", "loss": 3.0}, *rows]) + '{"step": 3'
  )
  found = noise_scale.noise_scale(path, windows=2)
  assert abs(np.log(found.scale[-1] / 80)) < 4 * found.log_error[-1] < 0.3
  assert abs(np.mean(trace / square) - 80) > 20  # the mean of ratios is another thing
  assert found.logged.sum() == 20_000
  with pytest.raises(UserError, match="noise_scale"):
    noise_scale.noise_scale(path, after=30_000)

"""isoFLOP analysis: minima against known valleys, exponents against known laws, brackets and groups by brute force."""

import json

import numpy as np
import pytest
from scipy import optimize

from ilya_jax import cli
from ilya_jax.errors import UserError
from ilya_jax.scaling import budgets, envelope, isoflop, valleys
from ilya_jax.scaling.fit import fit_law
from ilya_jax.scaling.fitted import FittedLaw
from ilya_jax.scaling.laws import FORMS
from ilya_jax.scaling.rows import Options
from ilya_jax.scaling.surface import Surface, flop_factor
from ilya_jax.scaling.table import Table

TRUTH = {"E": 1.2, "A": 12.0, "B": 56.0, "alpha": 0.30, "beta": 0.35}
A_TRUE = TRUTH["beta"] / (TRUTH["alpha"] + TRUTH["beta"])
QUICK = Options(bootstrap=0, starts=16)
COMPUTE = np.geomspace(1e12, 3e13, 4)


def law(N, D):
  return FORMS["chinchilla"].loss(TRUTH, N=N, D=D)


def best_size(compute):
  G = (TRUTH["alpha"] * TRUTH["A"] / (TRUTH["beta"] * TRUTH["B"])) ** (1 / (TRUTH["alpha"] + TRUTH["beta"]))
  return G * (compute / 6) ** A_TRUE


def make_table(N, D, loss, C=None, **columns):
  count = len(N)
  text = {name: np.array([str(value) for value in values], object) for name, values in columns.items()}
  values = {"N": N, "D": D, "C": 6 * N * D if C is None else C, "loss": loss}
  record = {"path": "t.csv", "sha256": "", "columns": {}, "units": {}, "derived": [], "dropped": [], "cluster": "row"}
  return Table(values, text, np.arange(count), np.full(count, "t.csv", object), np.arange(1, count + 1), record)


def isoflop_table(*, sizes=9, width=1.6, drift=0.0, noise=0.0, seed=0, seeds=1):
  """Valleys of the law about its own optimum; width: in ln N on each side; drift: of the centres, in ln N a budget."""
  steps = np.linspace(-width, width, sizes)
  N = np.concatenate([best_size(c) * np.exp(steps + drift * k) for k, c in enumerate(COMPUTE)])
  C = np.repeat(COMPUTE, sizes)
  N, C = np.tile(N, seeds), np.tile(C, seeds)
  loss = law(N, C / (6 * N)) * np.exp(noise * np.random.default_rng(seed).standard_normal(len(N)))
  return make_table(N, C / (6 * N), loss)


def analyse(table, *, options=QUICK, fitted=True):
  part = np.full(table.n_rows, "fit", object)
  surface = None
  if fitted:
    values = table.values
    surface = FittedLaw(fit_law("chinchilla", values["loss"], N=values["N"], D=values["D"], objective="lsq_log"), None)
  return isoflop.analyse(table, part, law=surface, options=options)


@pytest.mark.parametrize("method", valleys.METHODS)
def test_a_parabola_has_its_vertex_by_every_method(method):
  log_n = np.log(np.geomspace(1e5, 1e7, 11))
  at = np.array([13.2, 14.05])
  losses = 2 + 0.03 * (log_n - at[:, None]) ** 2
  found = valleys.minimum(method, log_n, losses)
  assert (found.code == valleys.USABLE).all()
  np.testing.assert_allclose(found.at, at, atol=1e-3 if method == "akima" else 1e-9)
  np.testing.assert_allclose(found.loss, 2, atol=1e-5 if method == "akima" else 1e-9)


def test_a_cubic_has_its_own_minimum():
  log_n = np.linspace(-2, 2, 8)
  losses = 1.5 + 0.4 * (log_n - 0.3) ** 2 + 0.05 * (log_n - 0.3) ** 3  # its other extremum lies at -5.03
  found = valleys.minimum("cubic", log_n + 12, np.stack([losses, losses * 7]))
  np.testing.assert_allclose(found.at, 12.3, atol=1e-9)
  assert valleys.minimum("cubic", log_n, -losses[None]).code[0] != valleys.USABLE


@pytest.mark.parametrize("method", valleys.METHODS)
@pytest.mark.parametrize("scale", [0.2, 1.0, 1e3])
def test_units_of_loss_and_size_change_no_minimum(method, scale):
  log_n = np.log(np.array([1.0, 1.7, 3.1, 5.0, 9.0, 16.0, 30.0]) * 1e5)
  losses = law(np.exp(log_n), 1e13 / (6 * np.exp(log_n)))[None]
  plain = valleys.minimum(method, log_n, losses)
  moved = valleys.minimum(method, log_n + np.log(scale), scale * losses)
  np.testing.assert_allclose(moved.at - np.log(scale), plain.at, atol=1e-7)
  assert moved.code.tolist() == plain.code.tolist()


def test_the_bracket_is_that_of_counting():
  rng = np.random.default_rng(0)
  for _ in range(200):
    log_n = np.sort(rng.uniform(0, 1, rng.integers(1, 8)))
    at = float(rng.uniform(-0.3, 1.3))
    below, above = sum(x < at for x in log_n), sum(x > at for x in log_n)
    code = int(valleys.bracket(log_n, np.array([at]))[0])
    assert (code == valleys.USABLE) == (below >= 2 and above >= 2)
    assert (code == valleys.OUTSIDE) == (below == 0 or above == 0)


@pytest.mark.parametrize(("count", "method", "code"), [
  (2, "parabola", valleys.TOO_FEW), (2, "akima", valleys.TOO_FEW), (3, "cubic", valleys.TOO_FEW_FOR_CUBIC),
])  # fmt: skip
def test_too_few_sizes_are_refused(count, method, code):
  found = valleys.minimum(method, np.arange(count, dtype=float), np.ones((2, count)))
  assert found.code.tolist() == [code] * 2
  assert np.isnan(found.at).all()


def test_a_hill_is_refused():
  log_n = np.linspace(0, 3, 6)
  assert valleys.minimum("parabola", log_n, -((log_n - 1.5) ** 2)[None]).code[0] == valleys.DOWNWARDS


def test_the_law_as_a_surface_gives_the_exponent_of_the_closed_form():
  found = analyse(isoflop_table())
  assert found["exponents"]["surface"]["a"]["value"] == pytest.approx(A_TRUE, abs=1e-6)
  assert found["exponents"]["surface"]["b"]["value"] == pytest.approx(1 - A_TRUE, abs=1e-6)
  for budget, compute in zip(found["budgets"], COMPUTE, strict=True):
    assert budget["C"] == pytest.approx(compute, rel=1e-9)
    assert budget["methods"]["surface"]["N"] == pytest.approx(best_size(compute), rel=1e-5)
    assert budget["methods"]["cubic"]["N"] == pytest.approx(best_size(compute), rel=0.02)
    assert budget["methods"]["akima"]["N"] == pytest.approx(best_size(compute), rel=0.02)
  assert found["grouping"]["rows_of_one_size"] == 0


def test_a_drifting_grid_biases_the_parabola_by_what_is_reported():
  """A parabola over a wide skewed valley whose centre drifts: its exponent is off, and the reported bias says by how much."""
  found = analyse(isoflop_table(width=2.5, drift=0.35))
  bias = found["bias"]["parabola"]["a"]["bias"]
  assert found["exponents"]["parabola"]["a"]["value"] - A_TRUE == pytest.approx(bias, abs=1e-4)
  assert abs(bias) > 0.004
  assert abs(found["bias"]["akima"]["a"]["bias"]) < abs(bias) / 2
  assert found["bias"]["skew"] == pytest.approx([TRUTH["beta"] - TRUTH["alpha"]] * 4, abs=1e-3)
  slope = found["bias"]["grid_drift"]
  assert slope == pytest.approx(0.35 / np.log(COMPUTE[1] / COMPUTE[0]), rel=1e-3)


def test_the_leading_shift_is_that_of_a_symmetric_grid():
  """On a grid symmetric about the minimum the parabola's vertex shifts by -(skew/6) m4/m2, the module's formula."""
  u = np.linspace(-1, 1, 9)
  skew = 0.05
  expected = -skew / 6 * (u**4).mean() / (u**2).mean()
  assert isoflop._leading_shift(u, skew) == pytest.approx(expected, rel=0.02)


def test_seeds_are_averaged_and_give_the_noise():
  table = isoflop_table(noise=0.002, seeds=4, sizes=7)
  found = analyse(table, options=Options(bootstrap=200, starts=16))
  assert found["noise"]["dof"] == 3 * 7 * 4
  assert found["noise"]["sd"] == pytest.approx(0.002, rel=0.25)
  assert all(point["seeds"] == 4 for budget in found["budgets"] for point in budget["points"])
  a = found["exponents"]["cubic"]["a"]
  assert a["low"] < A_TRUE < a["high"]


def test_intervals_of_the_exponent_cover_it():
  """60 noisy tables, the parabola on a centred grid: its 95 % interval holds the law's own exponent in 85 % at least."""
  inside = 0
  for seed in range(60):
    table = isoflop_table(noise=0.002, seed=seed, sizes=7)
    a = analyse(table, options=Options(bootstrap=199, starts=16), fitted=False)["exponents"]["parabola"]["a"]
    inside += a["low"] <= A_TRUE <= a["high"]
  assert 51 <= inside


def test_budgets_are_found_by_gaps():
  rng = np.random.default_rng(1)
  N = np.tile(np.geomspace(1e4, 1e6, 5), 3)
  C = np.repeat([1e12, 2e12, 4e12], 5) * np.exp(rng.uniform(-0.02, 0.02, 15))
  order = rng.permutation(15)
  table = make_table(N[order], (C / 6 / N)[order], np.ones(15))
  found = budgets.find(table, np.ones(15, bool))
  assert [sorted(table.values["N"][group]) for group in found.groups] == [sorted(N[:5])] * 3
  assert found.lone == 0


def test_of_several_learning_rates_the_best_stays():
  N = np.repeat(np.geomspace(1e4, 1e6, 5), 2)
  loss = np.tile([1.0, 2.0], 5)
  table = make_table(N, 1e12 / (6 * N), loss, lr=np.tile([0.1, 0.2], 5))
  (group,) = budgets.find(table, np.ones(10, bool)).groups
  assert set(table.values["loss"][group]) == {1.0}


def test_rows_that_are_not_final_make_no_budget():
  N = np.geomspace(1e4, 1e6, 5)
  table = make_table(N, 1e12 / (6 * N), np.ones(5), final=[0] * 5)
  with pytest.raises(UserError, match="isoflop"):
    budgets.find(table, np.ones(5, bool))


def test_a_table_without_equal_compute_is_refused():
  N = np.geomspace(1e4, 1e6, 5)
  with pytest.raises(UserError, match="equal C"):
    budgets.find(make_table(N, N**2, np.ones(5)), np.ones(5, bool))


def test_where_flop_are_counted_otherwise_the_optimum_is_that_of_a_minimiser():
  """C per token of 6 N + 2e5 (a head): the surface's optimum against bounded minimisation, and tokens against the inverse."""
  N = np.tile(np.geomspace(1e4, 1e6, 13), 4)
  C = np.repeat(COMPUTE, 13)
  D = C / (6 * N + 2e5)
  factor = flop_factor(N, D, C)
  assert not factor.is_6nd
  np.testing.assert_allclose(factor.log_tokens(np.log(N), np.log(C)), np.log(D), atol=1e-9)
  fit = fit_law("chinchilla", law(N, D), N=N, D=D, objective="lsq_log")
  at, loss = Surface(FittedLaw(fit, None), factor).optimum(np.log(COMPUTE))
  for k, compute in enumerate(COMPUTE):

    def cost(x, compute=compute):
      return float(law(np.exp(x), compute / (6 * np.exp(x) + 2e5)))

    best = optimize.minimize_scalar(cost, bounds=(np.log(1e4), np.log(1e6)), method="bounded", options={"xatol": 1e-9})
    assert at[0, k] == pytest.approx(best.x, abs=0.02)  # the factor is interpolated between the sizes
    assert loss[k] == pytest.approx(best.fun, rel=1e-5)


def test_6nd_is_recognised():
  N = np.geomspace(1e4, 1e6, 5)
  assert flop_factor(N, 20 * N, 120 * N**2).is_6nd


def trainings(sizes=12, *, constant=True):
  made = []
  for N in np.geomspace(3e3, 3e6, sizes):
    D = np.geomspace(2e5, 3e8, 80)
    made.append(envelope.Training(N, 6 * N * D, D, law(N, D), constant))
  return made


def test_the_envelope_of_the_law_has_its_exponent():
  found = envelope.analyse(trainings(40))
  assert found["valid"]
  assert found["refused"] == ""
  assert found["a"]["value"] == pytest.approx(A_TRUE, abs=0.03)
  assert found["a"]["value"] + found["b"]["value"] == pytest.approx(1, abs=0.01)


def test_the_envelope_is_the_lowest_by_brute_force():
  made = trainings(7)
  points = envelope.lowest(made)
  for k in range(0, len(points.C), 9):
    running = [
      each for each in made if each.C[0] <= points.C[k] * (1 + 1e-9) and points.C[k] <= each.C[-1] * (1 + 1e-9)
    ]
    losses = [float(np.exp(np.interp(np.log(points.C[k]), np.log(each.C), np.log(each.loss)))) for each in running]
    assert points.loss[k] == pytest.approx(min(losses), rel=1e-12)
    assert points.N[k] == running[int(np.argmin(losses))].N
    others = [each.N for each in running]
    assert points.bracketed[k] == (min(others) < points.N[k] < max(others))


def test_decaying_trainings_are_not_valid_and_few_are_refused():
  assert not envelope.analyse(trainings(constant=False))["valid"]
  assert "needs 3" in envelope.analyse(trainings(2))["refused"]
  assert "final rows alone" in envelope.analyse([])["refused"]


def test_the_command_writes_the_analysis_and_its_figures(tmp_path, capsys):
  table = isoflop_table(noise=0.002, sizes=7)
  path = tmp_path / "t.csv"
  rows = zip(*(table.values[name] for name in ("N", "D", "C", "loss")), strict=True)
  path.write_text("N,D,C,loss\n" + "".join(",".join(f"{x:.12g}" for x in row) + "\n" for row in rows))
  arguments = [
    "fit",
    str(path),
    "--form",
    "chinchilla",
    "--isoflop",
    "--bootstrap",
    "40",
    "--out",
    str(tmp_path / "out"),
  ]
  assert cli.main(arguments) == 0
  found = json.loads((tmp_path / "out" / "fit.json").read_text())["isoflop"]
  assert set(found["exponents"]) == {*valleys.METHODS, "surface"}
  assert len(found["budgets"]) == 4
  names = {path.name for path in (tmp_path / "out" / "figures").iterdir()}
  assert any("isoflop" in name or "valley" in name for name in names), names
  assert "isoFLOP" in (tmp_path / "out" / "report.html").read_text()
  assert "isoFLOP" in capsys.readouterr().out
  narrow = tmp_path / "narrow.csv"
  narrow.write_text("N,D,loss\n" + "".join(f"{n},{n * n},{1 + 1 / n}\n" for n in (1e3, 2e3, 4e3, 8e3, 1.6e4, 3e4, 6e4)))
  assert cli.main(["fit", str(narrow), "--isoflop", "--form", "kaplan_n", "--out", str(tmp_path / "no")]) == 2
  assert not (tmp_path / "no").exists()

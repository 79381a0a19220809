"""What a fit of a table says beside its parameters: sensitivity, other allocations, spread between forms, both counts of N."""

import numpy as np
import pytest

from ilya_jax.scaling import fitted, fitting
from ilya_jax.scaling.fit import fit_law
from ilya_jax.scaling.laws import FORMS
from ilya_jax.scaling.rows import Options, inner_error, step_error
from ilya_jax.scaling.sensitivity import sensitivity
from ilya_jax.scaling.table import Table

TRUTH = {"E": 1.2, "A": 12.0, "B": 56.0, "alpha": 0.30, "beta": 0.35}
QUICK = {"bootstrap": 0, "starts": 16}


def make_table(N, D, loss, **columns):
  """A table as `read_table` makes it, of arrays [n]."""
  count = len(N)
  text = {name: np.array([str(value) for value in values], object) for name, values in columns.items()}
  values = {"N": N, "D": D, "C": 6 * N * D, "loss": loss}
  record = {"path": "t.csv", "sha256": "", "columns": {}, "units": {}, "derived": [], "dropped": [], "cluster": "row"}
  return Table(values, text, np.arange(count), np.full(count, "t.csv", object), np.arange(1, count + 1), record)


def grid(sizes=5, lengths=4):
  return (x.ravel() for x in np.meshgrid(np.geomspace(6e3, 4e5, sizes), np.geomspace(5e5, 1.6e7, lengths)))


def loss_of(N, D, *, noise=0.003, seed=0):
  return FORMS["chinchilla"].loss(TRUTH, N=N, D=D) * np.exp(noise * np.random.default_rng(seed).standard_normal(len(N)))


def by_words(table, **options):
  kept = np.ones(table.n_rows, bool)
  records = sensitivity(table, kept, ~kept, name="chinchilla", options=Options(**QUICK, **options), shortened=False)
  return {record["what"]: record for record in records}


def test_the_planted_outlier_is_the_worst_row():
  N, D = grid()
  loss = loss_of(N, D)
  loss[7] *= 1.2
  found = by_words(make_table(N, D, loss))["1 worst row left out"]
  rest = np.arange(len(N)) != 7
  expected = fit_law("chinchilla", loss[rest], N=N[rest], D=D[rest])
  assert found["n_points"] == len(N) - 1
  np.testing.assert_allclose(list(found["parameters"].values()), list(expected.parameters.values()), rtol=1e-4)
  a = expected.parameters["beta"] / (expected.parameters["alpha"] + expected.parameters["beta"])
  assert found["a"] == pytest.approx(a, rel=1e-4)


def test_learning_rates_are_selected_and_interpolated():
  N, D = grid()
  best = loss_of(N, D, noise=0.0)
  rates = np.array([1e-3, 2e-3, 4e-3])
  valley = 1 + 0.02 * np.log(rates / 2.5e-3) ** 2  # lowest between the last two rates
  table = make_table(*(np.repeat(x, 3) for x in (N, D)), np.outer(best, valley).ravel(), lr=np.tile(rates, len(N)))
  found = by_words(table, objective="lsq_log")
  assert found["best learning rate of each"]["n_points"] == found["learning rate interpolated"]["n_points"] == len(N)
  chosen = fit_law("chinchilla", best * valley.min(), N=N, D=D, objective="lsq_log").parameters
  for name, value in chosen.items():
    assert found["best learning rate of each"]["parameters"][name] == pytest.approx(value, rel=1e-5)
    assert found["learning rate interpolated"]["parameters"][name] == pytest.approx(TRUTH[name], rel=1e-5)


def test_least_tokens_per_parameter_and_objectives_are_tried():
  N, D = grid()
  found = by_words(make_table(N, D, loss_of(N, D)))
  for least in (5, 10, 20):
    count = int((D / N >= least).sum())
    variant = found.get(f"D/N of {least} or more")
    assert variant is None or variant["n_points"] == count
  assert {"delta 0.0001", "delta 0.01", "least absolute deviations", "least squares of logs"} <= set(found)
  assert any(words.startswith("D/N") for words in found)
  assert "C = 6 N D for C" not in found  # a law of N and D does not know C


def test_other_rules_cost_compute_by_the_law_and_its_own_optimum_none():
  N, D = grid()
  table = make_table(N, D, loss_of(N, D))
  result = fitting.fit_table(table, Options(form="chinchilla,kaplan_nd", target_compute=[1e13], **QUICK)).result
  (target,) = result["forms"][0]["optimal"]["targets"]
  other = {"chinchilla": "kaplan_nd", "kaplan_nd": "chinchilla"}[result["ranking"][0]]
  names = [rule["rule"] for rule in target["rules"]]
  assert names[-1] == other
  assert len(names) == 5
  for rule in target["rules"]:
    assert 6 * rule["N"] * rule["D"] == pytest.approx(1e13)
    assert 0 <= rule["deadweight"] < 1
    assert rule["loss"] >= target["loss"]


def test_spread_between_forms_is_that_of_their_predictions():
  N, D = grid()
  options = Options(form="chinchilla,kaplan_nd", predict=[{"N": 1e6, "D": 1e8}], target_compute=[1e13], **QUICK)
  result = fitting.fit_table(make_table(N, D, loss_of(N, D)), options).result
  said = [form["predictions"][0]["predicted"] for form in result["forms"]]
  record = next(each for each in result["between_forms"] if each["what"] == "prediction")
  assert (record["low"], record["high"], record["forms"]) == (min(said), max(said), 2)
  assert {each["what"] for each in result["between_forms"]} == {"prediction", "optimal N", "optimal D", "optimal loss"}


def test_a_law_of_all_parameters_is_seen_through_a_count_without_embeddings():
  N, D = grid(sizes=7, lengths=6)
  total = N + 355.0 * np.cbrt(N)
  loss = FORMS["chinchilla"].loss(TRUTH, N=total, D=D)
  table = make_table(N, D, loss, N_total=total)
  found = fitted.counted_both_ways(table, np.ones(table.n_rows, bool), Options(objective="lsq_log", **QUICK))
  assert found["a_N_total"] == pytest.approx(0.35 / 0.65, rel=1e-6)
  assert found["g"] == pytest.approx(355.0)
  assert found["ladder_slope"] > found["a_N_total"] + 0.05  # bent upwards, and the fit in N sees it
  assert found["a_N"] == pytest.approx(found["ladder_slope"], abs=0.1)
  assert fitted.counted_both_ways(make_table(N, D, loss), np.ones(table.n_rows, bool), Options(**QUICK)) is None


def test_inner_error_leaves_out_a_run_with_its_repeats_of_other_seeds():
  """Three seeds without noise are one run three times: the error is that of the table without repeats."""
  N, D = grid()
  loss = FORMS["chinchilla"].loss(TRUTH, N=N, D=D)
  trunks = np.unique(N, return_inverse=True)[1]
  options = Options(form="kaplan_nd", objective="lsq_log", **QUICK)

  def inner(repeats):
    table = make_table(*(np.tile(x, repeats) for x in (N, D, loss)), seed=np.repeat(np.arange(repeats), len(N)))
    clusters = np.tile(trunks, repeats) + 10 * np.repeat(np.arange(repeats), len(N))
    return inner_error(table, np.ones(table.n_rows, bool), name="kaplan_nd", clusters=clusters, options=options)

  once, thrice = inner(1), inner(3)
  assert once[1] == thrice[1] == 3
  assert thrice[0] == pytest.approx(once[0], rel=1e-5)


def test_the_error_of_a_step_is_that_of_a_fit_that_saw_no_row_above_a_third_of_the_compute():
  N, D = grid()
  loss = loss_of(N, D, noise=0.02)
  table, rows = make_table(N, D, loss), np.ones(len(N), bool)
  C = table.values["C"]
  above = C > C.max() / 3
  law = fit_law("kaplan_nd", loss[~above], N=N[~above], D=D[~above])
  expected = 100 * np.abs(law.predict(N=N[above], D=D[above]) / loss[above] - 1).mean()
  found, count = step_error(table, rows, name="kaplan_nd", options=Options())
  assert count == above.sum() > 1
  assert found == pytest.approx(expected, rel=1e-6)
  moved = make_table(N, D, np.where(above, 2 * loss, loss))  # the rows that are predicted do not enter the fit
  doubled = 100 * np.abs(law.predict(N=N[above], D=D[above]) / (2 * loss[above]) - 1).mean()
  assert step_error(moved, rows, name="kaplan_nd", options=Options())[0] == pytest.approx(doubled, rel=1e-6)


def test_without_rows_that_determine_the_law_there_is_no_error_of_a_step():
  N, D = grid()
  table = make_table(N, D, loss_of(N, D))
  few = table.values["C"] >= np.sort(table.values["C"])[-3]
  assert step_error(table, few, name="kaplan_nd", options=Options()) == (None, 0)

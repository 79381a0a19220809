"""Oracles of the allocation: printed values, closed form against minimisation, brute force, the exponents' definition."""

import numpy as np
import pytest

from ilya_jax.scaling import optimal
from ilya_jax.scaling.laws import FORMS
from tests.scaling.test_laws import PRINTED

JOINT = [name for name, form in FORMS.items() if form.variables == ("N", "D")]


def test_hoffmann_at_1e21_flop():
  best = optimal.allocate("chinchilla", PRINTED["chinchilla"], compute=1e21)
  np.testing.assert_allclose([best.N, best.D, best.loss], [1.82422e9, 9.13634e10, 2.328883], rtol=3e-6)


def test_kaplan_at_c_6nd_gives_575_and_not_73():
  a, b = optimal.exponents("kaplan_nd", PRINTED["kaplan_nd"])
  assert a == pytest.approx(0.103 / (0.103 + 0.076), rel=1e-12)
  assert round(float(a), 3) == 0.575
  assert a + b == pytest.approx(1.0)


@pytest.mark.parametrize("compute", [1e15, 1e21, 1e26])
@pytest.mark.parametrize("name", JOINT)
def test_closed_form_equals_minimisation(name, compute):
  closed = optimal.allocate(name, PRINTED[name], compute=compute)
  numeric = optimal.minimise(name, PRINTED[name], compute=compute)
  np.testing.assert_allclose(closed.N, numeric.N, rtol=1e-8)
  np.testing.assert_allclose(closed.D, numeric.D, rtol=1e-8)
  np.testing.assert_allclose(closed.loss, numeric.loss, rtol=1e-12)
  assert 6 * closed.N * closed.D == pytest.approx(compute, rel=1e-12)


@pytest.mark.parametrize("name", JOINT)
def test_no_other_split_is_better(name):
  best = optimal.allocate(name, PRINTED[name], compute=1e20)
  N = best.N * np.geomspace(1e-3, 1e3, 2001)
  assert FORMS[name].loss(PRINTED[name], N=N, D=1e20 / (6 * N)).min() >= best.loss * (1 - 1e-13)


@pytest.mark.parametrize("name", JOINT)
def test_exponents_are_the_slopes_of_the_optimum(name):
  a, b = optimal.exponents(name, PRINTED[name])
  low, high = (optimal.allocate(name, PRINTED[name], compute=c) for c in (1e20, 1e22))
  assert np.log(high.N / low.N) / np.log(100) == pytest.approx(a, rel=1e-10)
  assert np.log(high.D / low.D) / np.log(100) == pytest.approx(b, rel=1e-10)


def test_floor_and_outer_exponent_move_no_optimum():
  with_floor = {**PRINTED["kaplan_nd"], "E": 1.0}
  first = optimal.allocate("kaplan_nd", PRINTED["kaplan_nd"], compute=1e20)
  second = optimal.allocate("kaplan_nd_floor", with_floor, compute=1e20)
  assert second.N == pytest.approx(first.N, rel=1e-12)
  assert second.loss - 1.0 == pytest.approx(first.loss, rel=1e-12)


def test_law_of_one_variable_has_no_allocation():
  assert optimal.exponents("kaplan_n", PRINTED["kaplan_n"]) is None
  assert optimal.allocate("kaplan_n", PRINTED["kaplan_n"], compute=1e20) is None

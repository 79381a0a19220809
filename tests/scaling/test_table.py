"""Tables: columns, units, the third of N, D and C, filters with their record, and every bad table of INTERFACES.md."""

import hashlib

import numpy as np
import pytest

from ilya_jax.errors import UserError
from ilya_jax.scaling.table import read_table

PLAIN = "N,D,loss,trunk\n1e6,1e8,4.0,a\n2e6,2e8,3.5,a\n4e6,4e8,3.0,b\n"


def _write(folder, text, name="t.csv"):
  path = folder / name
  path.write_text(text)
  return path


def test_quantities_clusters_and_record(tmp_path):
  path = _write(tmp_path, PLAIN)
  table = read_table([path])
  np.testing.assert_array_equal(table.values["N"], [1e6, 2e6, 4e6])
  np.testing.assert_allclose(table.values["C"], 6 * table.values["N"] * table.values["D"])
  assert table.record["derived"] == ["C by C = 6 N D"]
  assert table.record["sha256"] == hashlib.sha256(path.read_bytes()).hexdigest()
  assert table.record["path"] == str(path)
  assert table.cluster[0] == table.cluster[1] != table.cluster[2]


@pytest.mark.parametrize("missing", ["N", "D", "C"])
def test_third_quantity_is_derived_only_where_it_is_absent(tmp_path, missing):
  values = {"N": 2e6, "D": 3e8, "C": 3.6e15, "loss": 3.0}
  kept = {k: v for k, v in values.items() if k != missing}
  table = read_table([_write(tmp_path, ",".join(kept) + "\n" + ",".join(map(repr, kept.values())) + "\n")])
  assert table.values[missing][0] == pytest.approx(values[missing])
  whole = "N,D,C,loss\n2e6,3e8,5e15,3\n"
  assert read_table([_write(tmp_path, whole, "whole.csv")]).values["C"][0] == 5e15


def test_mapped_names_may_hold_spaces_and_commas(tmp_path):
  text = 'Model Size,"Tokens, all",Final loss\n1,100,4.0\n2,200,3.5\n'
  table = read_table(
    [_write(tmp_path, text)], columns="N=Model Size,D=Tokens, all,loss=Final loss", units="N=1e6,D=1e6"
  )
  np.testing.assert_array_equal(table.values["N"], [1e6, 2e6])
  np.testing.assert_array_equal(table.values["D"], [1e8, 2e8])
  assert table.record["columns"]["D"] == "Tokens, all"
  assert table.record["units"]["N"] == 1e6


@pytest.mark.parametrize(
  ("condition", "left"),
  [("N<2e6", 1), ("N <= 2e6", 2), ("N>=2e6", 2), ("loss!=3.5", 2), ("trunk==a", 2), ("trunk!='a'", 1), ("C<1.3e15", 1)],
)
def test_conditions(tmp_path, condition, left):
  table = read_table([_write(tmp_path, PLAIN)], where=[condition])
  assert table.n_rows == left
  assert len(table.record["dropped"]) == 3 - left
  assert all(condition in dropped["reason"] for dropped in table.record["dropped"])


def test_conditions_can_leave_out_bad_rows(tmp_path):
  table = read_table([_write(tmp_path, PLAIN + "8e6,8e8,nan,c\n")], where=["loss<10"])
  assert table.n_rows == 3
  assert table.record["dropped"][0]["row"] == 4


def test_drop_highest_keeps_what_is_strictly_below(tmp_path):
  text = "N,loss\n" + "".join(f"{n}e6,{loss}\n" for n, loss in zip(range(1, 7), (5, 4, 4, 3, 2, 1), strict=True))
  path = _write(tmp_path, text)
  assert read_table([path], drop_highest=1).n_rows == 5
  assert read_table([path], drop_highest=2).n_rows == 3  # the tie goes, too
  with pytest.raises(UserError, match="drop-highest"):
    read_table([path], drop_highest=6)


def test_final_only(tmp_path):
  table = read_table([_write(tmp_path, "N,loss,final\n1e6,4,0\n1e6,3,1\n2e6,2,1\n")], final_only=True)
  np.testing.assert_array_equal(table.values["loss"], [3, 2])


def test_several_tables_are_joined_with_their_source(tmp_path):
  first, second = _write(tmp_path, PLAIN), _write(tmp_path, PLAIN, "u.csv")
  table = read_table([first, second])
  assert table.n_rows == 6
  assert list(table.columns["source"]) == [str(first)] * 3 + [str(second)] * 3
  assert len(set(table.cluster)) == 4  # trunk a of one file is not trunk a of the other
  assert table.record["path"] == [str(first), str(second)]


def test_sweep_directory_stands_for_its_cells(tmp_path):
  _write(tmp_path, PLAIN, "cells.csv")
  assert read_table([tmp_path]).n_rows == 3


@pytest.mark.parametrize(
  ("text", "options", "words"),
  [
    ("N,D,loss\n", {}, "no rows"),
    ("", {}, "no rows"),
    ("N,D\n1,2\n", {}, "no column loss"),
    ("x,loss\n1,2\n", {}, "no column N, D or C"),
    ("N,loss\n1,2\n3,\n", {}, "row 2"),
    ("N,loss\n1,2\n3,nan\n", {}, "row 2"),
    ("N,loss\n1,2\n-3,4\n", {}, "row 2"),
    ("N,loss\n0,2\n", {}, "row 1"),
    ("N,loss\n1,two\n", {}, "'two'"),
    ("N,loss\n1,inf\n", {}, "row 1"),
    ("N,loss\n1,2,3\n", {}, "3 cells in row 1"),
    ("N,N,loss\n1,2,3\n", {}, "twice"),
    (PLAIN, {"columns": "N=Size"}, "no column 'Size'"),
    (PLAIN, {"columns": "los=loss"}, "did you mean"),
    (PLAIN, {"units": "N=big"}, "--units"),
    (PLAIN, {"units": "N=-1"}, "--units"),
    (PLAIN, {"where": ["N=1"]}, "--where"),
    (PLAIN, {"where": ["size<1"]}, "no column 'size'"),
    (PLAIN, {"where": ["N<1"]}, "no row left"),
    (PLAIN, {"cluster": "run"}, "no column 'run'"),
    (PLAIN, {"final_only": True}, "final"),
  ],
)
def test_bad_tables_are_refused_in_one_line(tmp_path, text, options, words):
  with pytest.raises(UserError, match=words) as caught:
    read_table([_write(tmp_path, text)], **options)
  assert "\n" not in str(caught.value)


def test_missing_and_binary_files(tmp_path):
  with pytest.raises(UserError, match="no file"):
    read_table([tmp_path / "none.csv"])
  with pytest.raises(UserError, match="no file"):
    read_table([tmp_path])
  (tmp_path / "b.csv").write_bytes(b"\xff\xfe\x00\x81\x00")
  with pytest.raises(UserError, match="not readable"):
    read_table([tmp_path / "b.csv"])

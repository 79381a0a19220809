"""The report of a sweep and of a fit: complete, self-contained, honest about what is missing, and its figures labelled."""

import csv
import json
import re
import runpy
from pathlib import Path

import numpy as np
import pytest
from ml_collections import ConfigDict

from ilya_jax import cli
from ilya_jax.scaling import curves, document, drawing, law_tables, plots, report, sections
from ilya_jax.scaling.fitting import fit_table
from ilya_jax.scaling.rows import Options
from ilya_jax.scaling.sweep import COLUMNS, Cell, Sweep, write_cells_csv
from ilya_jax.scaling.table import read_table
from ilya_jax.task import Counts

WIDTHS, STEPS, TOKENS_PER_STEP = (8, 12, 16, 24, 32), (50, 100, 200, 400), 1024


def law(N, D):
  """A Chinchilla law with the size of this sweep."""
  return 0.8 + 12.0 / N**0.30 + 56.0 / D**0.35


def make_cell(name, family, *, width, steps, seed=0, role="fit", trunk=None):
  config = ConfigDict({
    "steps": steps, "seed": seed, "batch_size": 8, "optim": {"learning_rate": 0.01, "name": "adamw"},
    "schedule": {"name": "constant" if role == "trunk" else "wsd", "cooldown_fraction": 0.2},
    "data": {"tokenizer": "bytes", "context": 128}, "model": {"name": "transformer_lm", "n_layers": 2},
  })  # fmt: skip
  N = 24 * width**2
  counts = Counts(N, 2 * N, 9.0 * N, TOKENS_PER_STEP)
  return Cell(name, family, "configs/x.py", {"model.d_model": width}, role, trunk or name, config, counts, 10**7, "")


def write_run(folder: Path, cell: Cell, *, state: str, loss: float):
  """The files of a run whose training loss falls towards `loss`."""
  folder.mkdir(parents=True)
  rows = []
  for step in range(10, cell.config.steps + 1, 10):
    flops = step * TOKENS_PER_STEP * cell.counts.flops_per_unit
    rows.append(
      {
        "step": step,
        "split": "train",
        "flops": flops,
        "loss": loss * (1 + 3 * np.exp(-step / 20)),
        "wall_s": step / 100,
      }
    )
  if state == "done":
    rows.append({"step": cell.config.steps, "split": "eval", "set": "heldout", "loss": loss, "loss_se": 0.004,
                 "bits_per_byte": loss / np.log(2), "wall_s": cell.config.steps / 100})  # fmt: skip
  (folder / "metrics.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
  (folder / "status.json").write_text(
    json.dumps({"id": cell.id, "state": state, "step": cell.config.steps, "wall_s": 2.0})
  )
  info = {
    "name": "stdlib", "fingerprint": "c7b6" * 16, "train_documents": 1546, "heldout_documents": 71, "heldout_tokens": 4096,
    "d_unique_total": 10**7, "duplicates_removed": {"documents": 1, "paragraphs": 26},
  }  # fmt: skip
  record = {"id": cell.id, "data": info, "hardware": "1 x cpu (test)", "versions": {"jax": "0"}, "git_commit": "abc"}
  (folder / "config.json").write_text(json.dumps(record))


@pytest.fixture(scope="module")
def made(tmp_path_factory):
  """(sweep, its folder, the failed cell's id, the measured held-out loss) with its report written."""
  root = tmp_path_factory.mktemp("sweep")
  rng = np.random.default_rng(0)
  cells = []
  for width in WIDTHS:
    trunk = make_cell(f"trunk{width:02d}", "transformer", width=width, steps=320, role="trunk")
    cells.append(trunk)
    cells += [make_cell(f"t{width:02d}x{s}", "transformer", width=width, steps=s, trunk=trunk.id) for s in STEPS]
  cells += [make_cell(f"seed{k}", "transformer", width=16, steps=200, seed=k) for k in (1, 2)]
  cells += [make_cell(f"lstm{w}", "lstm", width=w, steps=100) for w in (8, 16)]
  cells.append(make_cell("large", "transformer", width=48, steps=800, role="held_out"))
  failed = "t24x200"
  for cell in cells:
    loss = float(law(cell.counts.n, cell.units) * np.exp(0.002 * rng.standard_normal()))
    write_run(root / "cells" / cell.id, cell, state="failed" if cell.id == failed else "done", loss=loss)
  options = {"drop_shortest": True, "bootstrap": 40, "starts": 6, "target_compute": [1e12]}
  sweep = Sweep("synthetic", cells, options, {"learning rate": "by hand <for each width>"})
  write_cells_csv(root, cells)
  return sweep, root, failed


@pytest.fixture(scope="module")
def reported(made):
  """(sweep, folder, text of report.html, printed text, figures by name)."""
  import contextlib
  import io

  sweep, root, failed = made
  figures = {}
  original = report._drawer

  def remembering(folder, *, formats):
    draw = original(folder, formats=formats)

    def remember(name, figure, title, caption):
      figures[name] = (figure, title, caption)
      return draw(name, figure, title, caption)

    return remember

  printed = io.StringIO()
  with pytest.MonkeyPatch.context() as patch, contextlib.redirect_stdout(printed):
    patch.setattr(report, "_drawer", remembering)
    report.report_sweep(sweep, root, failed={failed: "loss is not finite at step 70"}, partial="family=*")
  return sweep, root, (root / "report" / "report.html").read_text(), printed.getvalue(), figures


def test_files_are_where_they_are_promised(reported):
  _, root, _, _, figures = reported
  folder = root / "report"
  assert sorted(path.name for path in folder.iterdir()) == ["figures", "lstm", "report.html", "transformer"]
  for kind in ("svg", "png"):
    assert {path.stem for path in (folder / "figures").glob(f"*.{kind}")} == set(figures)
  result = json.loads((folder / "transformer" / "fit.json").read_text())
  assert {"forms", "ranking", "checklist", "data", "command", "versions"} <= set(result)
  assert json.loads((folder / "lstm" / "fit.json").read_text())["forms"] == []
  assert not list(root.glob(".report*"))


def test_page_loads_nothing(reported):
  page = reported[2]
  assert "<script" not in page
  assert "@import" not in page
  sources = re.findall(r"""(?:src|href|url)\s*[=(]\s*["']?([^"'\s>)]+)""", page)
  assert sources
  assert all(source.startswith(("data:image/svg+xml;base64,", "#")) for source in sources)
  links = {source[1:] for source in sources if source.startswith("#")}
  assert links <= set(re.findall(r'id="([^"]+)"', page))


def test_ids_are_unique_and_images_have_words(reported):
  page = reported[2]
  ids = re.findall(r'\bid="([^"]+)"', page)
  assert len(ids) == len(set(ids))
  images = re.findall(r"<img [^>]*>", page)
  assert images
  assert all(re.search(r'alt="[^"]+"', image) for image in images)
  assert page.count("<figcaption>") == len(images)


def test_figures_have_units_and_legends(reported):
  units = re.compile(
    r"parameters|tokens|Tokens per parameter|FLOP|nats per byte|%|no unit|Form of the law", re.IGNORECASE
  )
  for name, (figure, _, caption) in reported[4].items():
    assert figure.legends, name
    assert len(caption) > 60, name
    for axes in figure.axes:
      assert units.search(axes.get_xlabel()), (name, axes.get_xlabel())
      assert name.endswith("_choices") or units.search(axes.get_ylabel()), (name, axes.get_ylabel())


def test_every_kind_of_figure_is_there(reported):
  kinds = {"curves", "compute", "chinchilla_N", "chinchilla_D", "residuals", "allocation", "held_out", "kaplan_c"}
  assert {f"transformer_{kind}" for kind in kinds} | {"families_C", "families_N"} <= set(reported[4])


def test_failures_and_partial_sweeps_are_named(reported):
  page = reported[2]
  notices = re.findall(r'<p class="notice">(.*?)</p>', page)
  assert any("Partial" in text and "family=*" in text for text in notices)
  assert any("t24x200" in text and "not finite at step 70" in text for text in notices)
  assert re.search(r'<tr class="failed"><td class="text"><code>t24x200</code>', page)
  assert "by hand &lt;for each width&gt;" in page


def test_page_says_what_a_small_family_lacks(reported):
  page = reported[2]
  section = page[page.index('<h2 id="lstm"') :]
  assert "No law could be fitted" in section


def test_held_out_numbers_are_printed_and_right(reported):
  _, root, page, printed, _ = reported
  result = json.loads((root / "report" / "transformer" / "fit.json").read_text())
  best = result["forms"][0]
  (point,) = best["held_out"]["points"]
  with (root / "cells.csv").open() as file:
    (row,) = [row for row in csv.DictReader(file) if row["cell"] == "large"]
  assert set(row) == set(COLUMNS)
  assert point["loss"] == float(row["loss"])
  assert abs(point["predicted"] / point["loss"] - 1) < 0.02
  (line,) = [line for line in printed.splitlines() if line.startswith("transformer")]
  assert best["form"] in line
  assert f"{point['predicted']:.3f} [{point['low']:.3f}, {point['high']:.3f}]" in line
  assert f"{100 * (point['predicted'] / point['loss'] - 1):+.1f} %" in line
  assert f"{point['loss']:.3f}" in printed
  assert printed.rstrip().endswith(str(root / "report" / "report.html"))
  assert document.number(point["predicted"]) in page


def test_an_older_report_is_replaced_whole(made, reported, capsys):
  sweep, root, _ = made
  stale = root / "report" / "figures" / "stale.svg"
  stale.write_text("old")
  leftover = root / ".report.1"
  leftover.mkdir()
  small = sweep._replace(cells=[c for c in sweep.cells if c.family == "lstm"])
  report.report_sweep(small, root, failed={}, partial=None)
  assert not stale.exists()
  assert not leftover.exists()
  assert (root / "report" / "fit.json").is_file()
  capsys.readouterr()


@pytest.fixture(scope="module")
def fitted(tmp_path_factory):
  """(fit, table) of a CSV whose lengths are nearly the same: they do not tell B and beta of a Chinchilla law."""
  rng = np.random.default_rng(1)
  path = tmp_path_factory.mktemp("table") / "losses.csv"
  lines = ["N,D,loss"]
  for N in (1e6, 2e6, 4e6, 8e6):
    for D in (1e8, 1.05e8, 1.1e8):
      lines.append(f"{N},{D},{law(N, D) * np.exp(0.02 * rng.standard_normal())}")
  path.write_text("\n".join(lines) + "\n")
  table = read_table([path])
  return fit_table(table, Options(form="chinchilla", bootstrap=30, starts=8)), table


def test_unidentified_parameters_are_flagged_in_a_fit_of_a_table(fitted, tmp_path, capsys):
  (tmp_path / "mine.txt").write_text("kept")
  report.report_fit(*fitted, tmp_path, formats=["html", "json"])
  page = (tmp_path / "report.html").read_text()
  assert re.search(r"<td[^>]*>not identified: ", page)
  assert "No run was held out" in page
  assert "data:image/svg+xml" in page
  assert sorted(path.name for path in tmp_path.iterdir()) == ["fit.json", "mine.txt", "report.html"]
  assert json.loads((tmp_path / "fit.json").read_text())["ranking"] == ["chinchilla"]
  out = capsys.readouterr().out
  assert "chinchilla" in out
  assert "no run held out" in out


def test_only_the_formats_asked_for_are_written(fitted, tmp_path, capsys):
  report.report_fit(*fitted, tmp_path / "out", formats=["png"])
  assert [path.name for path in (tmp_path / "out").iterdir()] == ["figures"]
  assert {path.suffix for path in (tmp_path / "out" / "figures").iterdir()} == {".png"}
  capsys.readouterr()


@pytest.mark.parametrize("quantity", ["N", "C"])
def test_a_table_of_one_quantity_has_a_report(quantity, tmp_path, capsys):
  path = tmp_path / "losses.csv"
  rows = [f"{x},{(8.8e13 / x) ** 0.076}" for x in np.geomspace(1e6, 1e9, 6)]
  path.write_text("\n".join([f"{quantity},loss", *rows]) + "\n")
  table = read_table([path])
  hold_out = "largest-compute" if quantity == "C" else "none"
  form = f"kaplan_{quantity.lower()}"
  fit = fit_table(table, Options(form=form, bootstrap=0, starts=4, hold_out=hold_out))
  report.report_fit(fit, table, tmp_path / "out", formats=["html"])
  assert form in (tmp_path / "out" / "report.html").read_text()
  capsys.readouterr()


def test_envelope_and_smoothing_against_brute_force():
  rng = np.random.default_rng(0)
  found = [curves.Curve(n, np.geomspace(1, 100, 30) * n, 2 + rng.random(30) / n, False) for n in (1, 2, 4)]
  flops, lowest = curves.envelope(found)
  every = [(c, value) for curve in found for c, value in zip(curve.C, curve.loss, strict=True)]
  for c, value in zip(flops, lowest, strict=True):
    assert value == min(other for at, other in every if at <= c)
  assert (np.diff(lowest) < 0).all()
  steps = np.arange(10, 2001, 10)
  kept, means = curves.smoothed(steps, 3.0 * np.ones(len(steps)))
  np.testing.assert_allclose(means, 3.0, rtol=1e-12)
  assert kept[0] == 10
  assert kept[-1] == 2000
  _, power = curves.smoothed(steps, steps**-0.1)
  np.testing.assert_allclose(power[20:-20], curves.smoothed(steps, steps**-0.1)[0][20:-20] ** -0.1, rtol=2e-3)


def test_branches_are_drawn_from_where_they_leave_their_trunk(made):
  sweep, root, _ = made
  runs = [run for run in curves.read_runs(sweep, root) if run.cell.id in ("trunk08", "t08x400")]
  trunk, branch = curves.curves(runs)
  assert not trunk.cooldown
  assert branch.cooldown
  flops_per_step = TOKENS_PER_STEP * runs[1].cell.counts.flops_per_unit
  assert branch.C[0] == 320 * flops_per_step
  assert runs[1].own_steps == 80
  (alone,) = curves.curves(runs[1:])
  assert alone.C[0] == 10 * flops_per_step


@pytest.mark.parametrize(
  ("value", "text"),
  [
    (0.34563, "0.3456"),
    (6.4e13, "6.40×10¹³"),
    (-0.5, "−0.5000"),
    (1e-5, "1.00×10⁻⁵"),
    (None, "—"),
    (float("inf"), "∞"),
    (12345.0, "12345"),
  ],
)
def test_numbers(value, text):
  assert document.number(value) == text


def test_equations_are_set_with_indices_and_powers():
  shown = document.equation("L(N, D) = [(N_c/N)^(alpha_N/alpha_D) + D_c/D]^alpha_D")
  assert shown.count("<sup>") == 2
  assert "(N<sub>c</sub>/N)<sup>α<sub>N</sub>/α<sub>D</sub></sup>" in shown
  assert "<b>" not in document.equation("<b>")


def test_levels_keep_few_values_and_bin_many():
  centres, which = drawing.levels(np.array([4.0, 2.0, 4.0, 8.0]))
  np.testing.assert_allclose(centres, [2, 4, 8])
  assert which.tolist() == [1, 0, 1, 2]
  values = np.geomspace(1, 1e6, 100)
  centres, which = drawing.levels(values)
  assert len(centres) <= 7
  assert (np.diff(which) >= 0).all()


def test_same_figure_gives_the_same_bytes():
  measured = plots.Measured(*[np.array([1.0, 2.0, 4.0]) * 1e6 for _ in range(3)], np.array([3.0, 2.5, 2.0]),
                            np.full(3, np.nan), np.array(["fit", "fit", "held_out"]))  # fmt: skip
  first, second = (plots.loss_against_compute(None, measured, name="") for _ in range(2))
  assert drawing.image(first, kind="svg") == drawing.image(second, kind="svg")
  assert sections.Draw


def test_joined_tables_are_drawn_over_each_other(tmp_path, capsys):
  N, D = (x.ravel() for x in np.meshgrid(np.geomspace(1e6, 1e8, 4), np.geomspace(1e8, 1e10, 4)))
  paths = []
  for k, name in enumerate(("ours", "theirs")):
    folder = tmp_path / "sweeps" / name
    folder.mkdir(parents=True)
    loss = (1.5 + 0.1 * k) + 400 / N**0.34 + 400 / D**0.28
    rows = "".join(f"{n},{d},{y}\n" for n, d, y in zip(N, D, loss, strict=True))
    (folder / "cells.csv").write_text(f"N,D,loss\n{rows}")
    paths.append(str(folder))
  assert cli.main(["fit", *paths, "--form", "chinchilla", "--bootstrap", "0", "--out", str(tmp_path / "out")]) == 0
  assert (tmp_path / "out" / "figures" / "sources_C.svg").is_file()
  page = (tmp_path / "out" / "report.html").read_text()
  assert "Sources compared" in page
  assert sections._apart(["a/runs/x/cells.csv", "a/runs/y/cells.csv"]) == {
    "a/runs/x/cells.csv": "x", "a/runs/y/cells.csv": "y",
  }  # fmt: skip
  assert sections._apart(["t.csv", "u.csv"]) == {"t.csv": "t", "u.csv": "u"}


def test_the_example_finds_the_exponents_it_was_made_from(capsys, monkeypatch):
  monkeypatch.setattr("sys.argv", ["fit_a_table.py"])
  scope = runpy.run_path(str(Path(__file__).parents[2] / "docs" / "fit_a_table.py"))
  scope["main"]()
  lines = capsys.readouterr().out.splitlines()
  found = {line.split()[0]: [float(x) for x in re.findall(r"[\d.]+(?:e[+-]?\d+)?", line)] for line in lines[1:6]}
  for name in ("alpha", "beta"):
    value, low, high = found[name][:3]
    assert low < value < high
    assert value == pytest.approx(scope["TRUTH"][name], abs=0.03), name


def test_held_out_runs_of_other_seeds_are_one_point_with_their_mean_loss():
  point = {"N": 1e6, "D": 1e8, "C": 6e14, "predicted": 2.02, "low": 1.9, "high": 2.1, "loss": 1.9}
  form = {"form": "chinchilla", "held_out": {"mape": 3.0, "c_ratio": 3.0, "points": [point, {**point, "loss": 2.1}]}}
  found = law_tables.held_out_point(form)
  assert found["loss"] == pytest.approx(2.0)
  assert found["runs"] == 2
  sentence = law_tables.held_out_sentence(form, "nats per token")
  assert sentence.startswith("For the 2 held-out runs of 1M parameters")
  assert "measured: 2.000 in the mean" in sentence
  assert "Error: +1.0" in sentence
  assert not law_tables.held_out_point({"held_out": {"points": [point, {**point, "D": 2e8}]}})
  assert not law_tables.held_out_point({"held_out": {"points": []}})

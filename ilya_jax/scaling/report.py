"""Reports: fits every family of a sweep (or takes the fit of a table), draws, and writes one self-contained report.html."""

import base64
import json
import os
import shutil
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import jinja2
from matplotlib.figure import Figure

from ilya_jax.scaling import curves, document, drawing, overview, printed, sections
from ilya_jax.scaling.curves import Run
from ilya_jax.scaling.document import Picture, Section
from ilya_jax.scaling.families import Family, sweep_family, table_family
from ilya_jax.scaling.fitting import FittedTable
from ilya_jax.scaling.sections import Draw
from ilya_jax.scaling.sections_batch import batch_section
from ilya_jax.scaling.sections_batch import lines as batch_lines
from ilya_jax.scaling.sections_isoflop import isoflop_section, lines
from ilya_jax.scaling.sweep import Sweep
from ilya_jax.scaling.table import Table

_PIXELS_PER_INCH = 100  # of the sizes told to the browser; it scales the drawing to the column
_NAMED = 6  # failed or missing cells that stand at the top; the table has all


def report_sweep(sweep: Sweep, sweep_dir: Path, *, failed: Mapping[str, str], partial: str | None) -> None:
  """Fits every family of a sweep whose cells.csv is written, and puts `report/` in place of an older one.

  failed: id -> last line of the cells that failed. partial: the `--only` pattern of a partial run. Writes
  report/report.html, report/figures/*.{svg,png} and report/fit.json (report/<family>/fit.json where there are several
  families), all or nothing; prints each family's exponents and its held-out prediction beside the measured loss.
  """
  runs = curves.read_runs(sweep, sweep_dir)
  names = list(dict.fromkeys(cell.family for cell in sweep.cells))
  families = [sweep_family(sweep, runs, family=name, sweep_dir=sweep_dir) for name in names]
  final = sweep_dir / "report"
  building = _fresh_folder(final)
  draw = _drawer(building / "figures", formats=("svg", "png"))
  made = sweep_sections(sweep, runs, families, failed=failed, draw=draw)
  for family in families:
    folder = building / family.name if len(families) > 1 else building
    folder.mkdir(exist_ok=True)
    _write_json(folder / "fit.json", family.result)
  page = render(made, title=f"Scaling laws of the sweep {sweep.name}", subtitle=_subtitle(families),
                notices=_notices(sweep, runs, failed=failed, partial=partial))  # fmt: skip
  (building / "report.html").write_text(page, encoding="utf-8")
  _put_in_place(building, final)
  print(printed.summary(sweep.name, families))
  print(f"report: {final / 'report.html'}")


def sweep_sections(
  sweep: Sweep, runs: Sequence[Run], families: Sequence[Family], *, failed: Mapping[str, str], draw: Draw
) -> list[Section]:
  """All sections of a sweep's report in their order."""
  made = [overview.summary_section(runs, families)]
  made += [sections.family_section(family, draw=draw) for family in families]
  shown = [family for family in families if len(family.measured.loss)]
  if len(shown) > 1:
    made.append(sections.families_section(shown, draw=draw))
  made.append(overview.cells_section(runs, failed, families=families))
  made.append(overview.making_section(sweep, runs, families))
  made.append(overview.checklist_section(families))
  return made


def _subtitle(families: Sequence[Family]) -> str:
  count = sum(len(family.measured.loss) for family in families)
  return f"{count} measured points, {len(families)} famil{'y' if len(families) == 1 else 'ies'}; intervals are 95 %"


def _notices(sweep: Sweep, runs: Sequence[Run], *, failed: Mapping[str, str], partial: str | None) -> list[str]:
  """What a reader must know before the numbers: a partial sweep, failed cells, missing ones, the sweep's own caveats."""
  texts = []
  if partial:
    texts.append(f"Partial: this report covers the cells selected by --only {partial!r} and those finished before.")
  broken = [run for run in runs if run.cell.id in failed]
  texts += [f"Failed: cell {document.cell_words(run)}: {failed[run.cell.id]}" for run in broken[:_NAMED]]
  if len(broken) > _NAMED:
    texts.append(f"Failed: {len(broken) - _NAMED} more cells, see the table of cells.")
  missing = [run for run in runs if run.cell.id not in failed and run.state.get("state") != "done"]
  if missing:
    named = "; ".join(document.cell_words(run) for run in missing[:_NAMED]) + ("; …" if len(missing) > _NAMED else "")
    texts.append(f"Missing: {len(missing)} of {len(runs)} cells are not done and are left out: {named}.")
  if "size" in sweep.notes:
    texts.append(f"Note: {sweep.notes['size']}.")
  return texts


def report_fit(fitted: FittedTable, table: Table, out: Path, *, formats: Sequence[str]) -> None:
  """Writes the fit of a table to the folder `out`: fit.json, report.html and figures/, whichever `formats` names.

  table: the rows that were fitted, held out and dropped. formats: of html, json, svg, png. Other files of the folder
  stay. Prints the laws with their exponents, and the held-out prediction where rows were held out.
  """
  unit = "nats per token" if "bits_per_byte" in table.columns else "as in the table"
  family = table_family(fitted, table, name="fit", unit=unit)
  building = _fresh_folder(out / "report")
  draw = _drawer(building / "figures", formats=formats)
  made = [
    *overview.table_sections(family),
    sections.family_section(family, draw=draw),
    *sections.sources_section(family, table, draw=draw),
    *([isoflop_section(found, unit=unit, draw=draw)] if (found := fitted.result.get("isoflop")) else []),
    *([batch_section(found, draw=draw)] if (found := fitted.result.get("critical_batch")) else []),
    overview.checklist_section([family]),
  ]
  if "json" in formats:
    _write_json(building / "fit.json", fitted.result)
  if "html" in formats:
    page = render(made, title="Scaling-law fit", subtitle=_subtitle([family]), notices=[])
    (building / "report.html").write_text(page, encoding="utf-8")
  for path in sorted(p for p in building.rglob("*") if p.is_file()):
    target = out / path.relative_to(building)
    target.parent.mkdir(parents=True, exist_ok=True)
    os.replace(path, target)
  shutil.rmtree(building)
  print(printed.summary(f"fit of {len(family.measured.loss)} points", [family]))
  if "isoflop" in fitted.result:
    print(lines(fitted.result["isoflop"]))
  if "critical_batch" in fitted.result:
    print(batch_lines(fitted.result["critical_batch"]))
  print(f"report: {out / 'report.html'}" if "html" in formats else f"written to {out}")


def render(made: Sequence[Section], *, title: str, subtitle: str, notices: Sequence[str]) -> str:
  """The page: everything inside, no script, nothing loaded."""
  environment = jinja2.Environment(
    loader=jinja2.FileSystemLoader(Path(__file__).parent), autoescape=True, undefined=jinja2.StrictUndefined,
    trim_blocks=True, lstrip_blocks=True,
  )  # fmt: skip
  page = environment.get_template("report.html.jinja")
  return page.render(sections=made, title=title, subtitle=subtitle, notices=notices)


def _drawer(folder: Path, *, formats: Sequence[str]) -> Callable[[str, Figure, str, str], Picture]:
  """A function that saves a figure under its name in the formats asked for, and returns it for the page."""

  def draw(name: str, figure: Figure, title: str, caption: str) -> Picture:
    width, height = (round(_PIXELS_PER_INCH * inches) for inches in figure.get_size_inches())
    vector = drawing.image(figure, kind="svg") if {"svg", "html"} & set(formats) or "html" not in formats else b""
    for kind in ("svg", "png"):
      if kind in formats:
        folder.mkdir(parents=True, exist_ok=True)
        (folder / f"{name}.{kind}").write_bytes(vector if kind == "svg" else drawing.image(figure, kind="png"))
    source = f"data:image/svg+xml;base64,{base64.b64encode(vector).decode()}"
    return Picture(name, title, caption, source, width, height)

  return draw


def _fresh_folder(final: Path) -> Path:
  """An empty folder beside `final` to build in; leftovers of killed builds go."""
  for leftover in final.parent.glob(f".{final.name}.*"):
    shutil.rmtree(leftover, ignore_errors=True)
  building = final.with_name(f".{final.name}.{os.getpid()}")
  building.mkdir(parents=True)
  return building


def _put_in_place(building: Path, final: Path) -> None:
  """Swaps a finished folder for an older one."""
  old = final.with_name(f".{final.name}.old.{os.getpid()}")
  if final.exists():
    os.rename(final, old)
  os.rename(building, final)
  shutil.rmtree(old, ignore_errors=True)


def _write_json(path: Path, value: Any) -> None:
  path.write_text(json.dumps(value, indent=1, allow_nan=False) + "\n", encoding="utf-8")

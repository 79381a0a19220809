"""Calibration: sweeps on five generated languages of exactly known entropy, and whether the fits find it as their floor.

    python experiments/calibration.py [--only 1,2]     about 8 minutes a language on 2 quiet cores; goes on where it stopped

Fixed before any of the five was trained (language 0 served to choose the design): the languages `lookup:1` to `lookup:5`, the
sweep configs/sweeps/lookup.py, its fits as `ilya-jax sweep` makes them, and

- the law: of those of N and D with a free floor (`FORMS`), the one of smallest inner error, so that neither the held-out runs nor
  the truth choose it; a law without a floor is wrong here by construction;
- floors: the entropy lies inside the law's 95 % interval of E in at least four languages, and E is within 5 % of it in the median;
- held-out runs (of three times the largest fitted compute): predicted within 1 % in the median.

The criteria are those of the Transformers; the LSTMs, and every other law, are recorded beside them.
Writes experiments/results/calibration.json.
"""

import argparse
import json
import statistics
from pathlib import Path
from typing import Any

from ilya_jax import cli
from ilya_jax.data.lookup import lookup_language, mean_entropy
from ilya_jax.train.metrics import read_json, write_json
from ilya_jax.train.workdir import git_commit, hardware, versions

LANGUAGES = (1, 2, 3, 4, 5)
FORMS = ("chinchilla", "chinchilla_tied", "coupled", "kaplan_nd_floor")
INSIDE, FLOOR_WITHIN, HELD_OUT_WITHIN = 4, 5.0, 1.0  # languages; per cent in the median
RESULT = Path(__file__).parent / "results" / "calibration.json"
VOCABULARY, CONTEXT = 32, 128  # of the sweep


def law_record(form: dict[str, Any], truth: float) -> dict[str, Any]:
  """What one fitted law says of the floor and of the held-out run."""
  interval = form["intervals"]["E"]
  points = (form.get("held_out") or {}).get("points") or []
  return {
    "form": form["form"], "inner_mape": form["inner_mape"], "E": form["parameters"]["E"], "low": interval["low"],
    "high": interval["high"], "identified": interval["identified"], "method": interval["method"],
    "inside": (interval["low"] or 0.0) <= truth and (interval["high"] is None or truth <= interval["high"]),  # None: open
    "floor_error": 100 * (form["parameters"]["E"] / truth - 1),
    "held_out": [100 * (point["predicted"] / point["loss"] - 1) for point in points],
    "c_ratio": (form.get("held_out") or {}).get("c_ratio"),
  }  # fmt: skip


def measure(number: int, folder: Path) -> dict[str, Any]:
  """Runs the sweep on a language (or goes on with it) and reads its fits."""
  code = cli.main(["sweep", f"configs/sweeps/lookup.py:{number}", "--workdir", str(folder)])
  if code:
    raise SystemExit(code)
  truth = mean_entropy(lookup_language(number, vocab_size=VOCABULARY), context=CONTEXT)
  families = {}
  for path in sorted(folder.glob("report/*/fit.json")):
    result = read_json(path)
    assert result is not None
    laws = {each["form"]: law_record(each, truth) for each in result["forms"] if each["form"] in FORMS}
    ranked = [name for name in result["ranking"] if name in laws]
    families[path.parent.name] = {"chosen": ranked[0], "first_of_all": result["ranking"][0], "laws": laws}
  return {"language": number, "entropy": truth, "families": families, "commit": git_commit()}


def judge(languages: list[dict[str, Any]], family: str) -> dict[str, Any]:
  """The criteria, for one family."""
  chosen = [each["families"][family]["laws"][each["families"][family]["chosen"]] for each in languages]
  inside = sum(law["inside"] for law in chosen)
  floor = statistics.median(abs(law["floor_error"]) for law in chosen)
  errors = [abs(error) for law in chosen for error in law["held_out"]]
  held_out = statistics.median(errors) if errors else None
  return {
    "inside": inside, "of": len(chosen), "floor_error_median": floor, "held_out_median": held_out,
    "forms": [law["form"] for law in chosen],
    "floors_hold": inside >= INSIDE and floor <= FLOOR_WITHIN,
    "held_out_holds": None if held_out is None else held_out <= HELD_OUT_WITHIN,
  }  # fmt: skip


def main() -> None:
  """Measures the languages, one after another, and writes what is there after each."""
  parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
  parser.add_argument("--only", default="", metavar="1,2")
  parser.add_argument("--workdir", type=Path, default=Path("runs/calibration"))
  arguments = parser.parse_args()
  chosen = [int(part) for part in arguments.only.split(",") if part] or list(LANGUAGES)
  known = {each["language"]: each for each in (read_json(RESULT) or {}).get("languages", [])}
  for number in chosen:
    known[number] = measure(number, arguments.workdir / str(number))
    languages = [known[key] for key in sorted(known)]
    families = languages[0]["families"]
    record = {
      "criteria": {"inside": INSIDE, "floor_within_percent": FLOOR_WITHIN, "held_out_within_percent": HELD_OUT_WITHIN},
      "verdicts": {family: judge(languages, family) for family in families},
      "hardware": hardware(), "versions": versions(), "languages": languages,
    }  # fmt: skip
    write_json(RESULT, record)
    print(json.dumps(record["verdicts"], indent=1), flush=True)


if __name__ == "__main__":
  main()

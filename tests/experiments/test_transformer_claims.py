"""The claims of `experiments/transformer.py`: rules on made-up rows, the path from runs to rows and figures, tiny scale."""

from pathlib import Path
from types import SimpleNamespace

import jax
import numpy as np
import pytest

from experiments import transformer as claims
from experiments import transformer_figures as figures
from experiments import transformer_paths as paths
from experiments import transformer_runs as runs
from experiments import transformer_table3 as table3
from ilya_jax.claims import Setting
from ilya_jax.config import load_config
from ilya_jax.data.copying import copies
from ilya_jax.scaling.drawing import image
from ilya_jax.train.loop import prepare

ROOT = Path(__file__).parents[2]
SEEDS = (0, 1, 2)
CLAIMS = {claim.id: claim for claim in claims.CLAIMS}


def rows_of(field, values, **common):
  """Rows of net -> a value for each seed."""
  return [{"seed": seed, "net": name, field: value, **common}
          for name, own in values.items() for seed, value in enumerate(own)]  # fmt: skip


def test_rule_of_copy():
  def judge(ours, lstm):
    values = {"Transformer": ours, "LSTM": lstm, "attention LSTM": (1.0,) * 3}
    return claims.judge_copy(rows_of("exact", values, length=24), "small").verdict

  assert judge((0.9, 1.0, 0.1), (0.5, 0.4, 0.9)) == "holds"  # medians .9, .5
  assert judge((0.89, 1.0, 0.1), (0.0,) * 3) == "does not hold"
  assert judge((0.9, 1.0, 0.1), (0.51, 0.4, 0.9)) == "does not hold"
  for after, expected in ((0.79, "holds"), (0.8, "does not hold")):
    assert claims.judge_copy([{"seed": 0, "before": 1.0, "after": after}], "tiny").verdict == expected


def test_rule_of_translation():
  def judge(ours):
    rows = rows_of("nll", {"Transformer": ours, "attention LSTM": (3.0,) * 3}, at_equal_time=3.0, train_s=1.0)
    return claims.judge_translation(rows, "small").verdict

  assert judge((2.9, 3.1, 2.9)) == "holds"
  assert judge((2.9, 3.1, 3.1)) == judge((2.9, None, None)) == "does not hold"
  for bleu, expected in ((25.3, "holds"), (25.2, "does not hold")):
    assert claims.judge_translation(rows_of("bleu", {"base": (bleu,) * 3}), "paper").verdict == expected


def test_rule_of_heads_and_key_width():
  def judge(**changes):
    values = {"1": (0.5,) * 3, "2": (0.6,) * 3, "4": (0.56,) * 3, "8": (0.5,) * 3, "16": (0.5,) * 3, "32": (0.53,) * 3}
    values |= {name[1:]: (value,) * 3 for name, value in changes.items()}
    return table3.judge_heads(rows_of("accuracy", values), "small").verdict

  assert judge() == judge(_4=0.1, _8=0.56) == "holds"
  assert judge(_1=0.52) == judge(_32=0.55) == "does not hold"

  def widths(*values):
    made = {f"{w}": (v,) * 3 for w, v in zip(table3.KEY_WIDTHS, values, strict=True)}
    return table3.judge_key_width(rows_of("accuracy", made), "small").verdict

  assert widths(0.3, 0.5, 0.6) == "holds"
  assert widths(0.3, 0.6, 0.6) == "does not hold"


def test_rules_of_table_3_at_paper_scale():
  printed = {
    table3.judge_heads: {"1": 5.29, "8": 4.92, "32": 5.01},
    table3.judge_key_width: {"16": 5.16, "32": 5.01, "64": 4.92},
    table3.judge_size: {"n2": 6.11, "n4": 5.19, "base": 4.92, "n8": 4.88, "d256": 5.75, "d1024": 4.66, "f1024": 5.12,
                        "f4096": 4.75},
    table3.judge_dropout: {"0": 5.77, "0.1": 4.92, "0.2": 4.95},
    table3.judge_smoothing: {"0": 4.67, "0.1": 4.92, "0.2": 5.47},
    claims.judge_positions: {"sinusoids": 4.92, "learned": 4.92},
  }  # fmt: skip
  for judge, perplexities in printed.items():
    rows = rows_of("perplexity", {name: (value,) * 3 for name, value in perplexities.items()})
    assert judge(rows, "paper").verdict == "holds"
    same = [{**row, "perplexity": 5.0} for row in rows]
    assert (judge(same, "paper").verdict == "holds") is (judge is claims.judge_positions)
  apart = rows_of("perplexity", {"sinusoids": (4.92,) * 3, "learned": (4.99,) * 3})
  assert claims.judge_positions(apart, "paper").verdict == "does not hold"


def test_rules_of_size_dropout_and_smoothing():
  def sizes(*values):
    return table3.judge_size(rows_of("loss", dict(zip(table3.SIZES, values, strict=True))), "small").verdict

  assert sizes((3, 3, 3), (2, 2, 2.9), (1, 1, 2.8)) == "holds"
  assert sizes((3, 3, 3), (2, 2, 3.1), (1, 1, 2.8)) == "does not hold"

  def dropout(values):
    return table3.judge_dropout(rows_of("nll", {"no dropout": (3.0,) * 3, "dropout": values}), "small").verdict

  assert dropout((2.9, 2.9, 2.9)) == "holds"
  assert dropout((2.9, 2.9, 3.0)) == "does not hold"

  def smoothing(nll, accuracy):
    rows = [{**row, "accuracy": 0.5 if row["net"] == "dropout" else accuracy}
            for row in rows_of("nll", {"dropout": (2.0,) * 3, "smoothing": nll})]  # fmt: skip
    return table3.judge_smoothing(rows, "small").verdict

  assert smoothing((2.1,) * 3, 0.496) == "holds"
  assert smoothing((2.1,) * 3, 0.494) == smoothing((2.1, 2.1, 1.9), 0.6) == "does not hold"


def test_rule_of_positions():
  def judge(learned=(1.0, 0.98, 1.0), nll=(2.0, 2.1, 2.2), control=0.04):
    rows = []
    for name, exact in (("sinusoids", (1.0, 1.0, 0.99)), ("learned", learned), ("none", (control,) * 3)):
      rows += [
        {"seed": s, "net": name, "task": "copy", **{f"exact_{n}": v for n in claims.LENGTHS}}
        for s, v in enumerate(exact)
      ]
    rows += rows_of("held_out", {"sinusoids": (2.0, 2.1, 2.2), "learned": nll}, task="help")
    return claims.judge_positions(rows, "small").verdict

  assert judge() == "holds"
  assert judge(control=0.05) == judge(nll=(2.4, 2.5, 2.6)) == judge(learned=(0.5, 0.51, 0.5)) == "does not hold"


def test_rule_of_extrapolation():
  def judge(exact, ours, theirs):
    rows = [{"seed": s, "net": net, "exact_32": exact, "token_25_32": token}
            for s in SEEDS for net, token in (("sinusoids", ours), ("learned", theirs))]  # fmt: skip
    return claims.judge_extrapolation(rows, "small").verdict

  assert judge(0.91, 0.96, 0.85) == "holds"
  assert judge(0.89, 0.95, 0.5) == judge(0.9, 0.95, 0.9) == "does not hold"


def test_rules_of_path_and_cost():
  def path(power, forgotten):
    rows = [{"seed": s, "layer": "attention", "length": n, "norm": n**power} for s in SEEDS for n in paths.LENGTHS]
    rows += [{"seed": s, "layer": "lstm", "length": n, "norm": forgotten} for s in SEEDS for n in paths.LENGTHS]
    return paths.judge_path(rows, "small").verdict

  assert path(-1.0, 1e-6) == "holds"
  assert path(-1.4, 1e-6) == path(-0.6, 1e-6) == path(-1.0, 2e-5) == "does not hold"

  def cost(factor):
    rows = [{"layer": kind, "length": n, "formula": 2 * paths.multiply_adds(kind, n, 64),
             "counted": 2 * factor * paths.multiply_adds(kind, n, 64)}
            for kind in ("attention", "lstm") for n in (64, 128, 256)]  # fmt: skip
    return paths.judge_cost(rows, "small").verdict

  assert cost(1.05) == "holds"
  assert cost(1.2) == "does not hold"


def test_rule_of_warmup():
  def judge(**losses):
    found = {"post-LN, warm-up 0": (2.0,) * 3, "post-LN, warm-up 400": (0.5,) * 3, "pre-LN, warm-up 0": (0.4,) * 3,
             "pre-LN, warm-up 400": (0.3,) * 3}  # fmt: skip
    found["post-LN, warm-up 0"] = losses.get("without", (2.0,) * 3)
    found["pre-LN, warm-up 0"] = losses.get("pre", (0.4,) * 3)
    return claims.judge_warmup(rows_of("loss", found), "small").verdict

  assert judge() == judge(without=(None, None, 0.1)) == "holds"  # two of three diverged
  assert judge(without=(0.9,) * 3) == judge(pre=(0.6,) * 3) == judge(pre=(None,) * 3) == "does not hold"


class MadeUp:
  """A run that was not trained."""

  def __init__(self, spec, overrides):
    self.config, self.failed = load_config(f"{ROOT}/{spec}", overrides), ""

  def evaluation(self, name, metric="loss"):
    assert name in ("heldout", "validation")
    return {"loss": 1.0, "nll": 1.5, "accuracy": 0.5}[metric]

  def curve(self, metric="loss", *, split="train", name=""):
    return list(range(10)), np.linspace(2, 1, 10).tolist()

  def load(self, *, average=1):
    return SimpleNamespace(scores=lambda split: {"bleu": 20.0, "exact": 0.1})


@pytest.mark.parametrize(
  "claim", [claim for claim in claims.CLAIMS if claim.id not in ("path", "cost")], ids=lambda c: c.id
)
@pytest.mark.parametrize("scale", ["small", "paper"])
def test_runs_become_rows_figures_and_a_verdict(claim, scale, monkeypatch, tmp_path):
  """With made-up runs; every run's config is one that exists, with fields that exist."""
  if scale not in claim.criteria:
    return
  monkeypatch.setattr(claims, "copied", lambda run, lengths: [(0.5, 0.6)] * len(lengths))
  monkeypatch.setattr(claims, "by_time", lambda run: ([1.0, 2.0], [3.0, 2.0]))
  maps = {f"head {k}": np.eye(3) for k in range(4)}
  monkeypatch.setattr(claims, "attention_maps", lambda run, length: (maps, list("abc"), list("abc")))

  def train(jobs, **options):
    return {name: MadeUp(*job) for name, job in jobs.items()}

  measured = claim.measure(Setting(scale, SEEDS, tmp_path, train, print))
  assert {row["seed"] for row in measured.rows} == set(SEEDS)
  assert claim.judge(measured.rows, scale).finding
  for figure in measured.figures.values():
    assert image(figure, kind="svg").startswith(b"<?xml")


def test_copies_are_judged_by_what_greedy_search_writes(monkeypatch):
  """On a model of random weights: shares by hand, and attention maps whose rows sum to 1."""
  changes = {"model.n_layers": 1, "model.d_model": 16, "model.d_ff": 16, "data.longest": 5}
  config = load_config(f"{ROOT}/configs/transformer.py:copy", changes)
  task, source, _ = prepare(config)
  params = runs.random_parameters(task.init, source.batch(0, split="train"))["params"]
  loaded = SimpleNamespace(config=config, source=source, params=params)
  run = SimpleNamespace(load=lambda: loaded)
  monkeypatch.setattr(runs, "TESTED", 4)
  ((exact, token),) = runs.copied(run, [4])
  batch = copies(jax.random.fold_in(jax.random.key(2020), 4), rows=4, symbols=16, shortest=4, longest=4)
  written = np.asarray(jax.jit(task.predict)(params, {}, batch))
  right = written == np.asarray(batch["target"])[:, 1:]
  assert exact == right.all(1).mean()
  assert token == right.mean()
  maps, rows, columns = runs.attention_maps(run, 4)
  assert rows[0] == "begin"
  assert columns[-1] == "end"
  assert len(maps) == 4
  for weights in maps.values():
    assert weights.shape == (len(rows), len(columns)) == (5, 5)
    np.testing.assert_allclose(weights.sum(1), 1, atol=1e-6)


def test_values_by_time():
  curve = ([1.0, 2.0, 3.0], [5.0, 4.0, 3.0])
  assert runs.at_time(curve, 2.5) == 4.0
  assert np.isnan(runs.at_time(curve, 0.5))


def test_printed_table_is_that_of_the_paper():
  for sizes, perplexities in figures.TABLE_3.values():
    assert 4.92 in perplexities
    assert len(sizes) == len(perplexities)


@pytest.mark.slow
@pytest.mark.parametrize("claim", claims.CLAIMS, ids=lambda claim: claim.id)
def test_necessary_conditions(claim, monkeypatch, tmp_path):
  monkeypatch.chdir(ROOT)
  from ilya_jax.claims.measuring import measure

  record, _ = measure(claim, scale="tiny", seeds=None, folder=tmp_path, command="")
  assert record["verdict"] == "holds", record["finding"]

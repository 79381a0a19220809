"""The 26 readings of "Ilya's list", and the files of each: claims in experiments/, configs in configs/."""

import importlib.util
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

from ilya_jax.claims.claim import Claim
from ilya_jax.errors import UserError, did_you_mean


class Reading(NamedTuple):
  """A reading. kind: T trains through the loop, C computes, L is a capability of the base itself."""

  id: str
  year: int
  title: str
  authors: str
  kind: str


READINGS = tuple(
  Reading(*fields)
  for fields in (
    ("mdl_weights", 1993, "Keeping Neural Networks Simple by Minimizing the Description Length of the Weights",
     "Hinton, van Camp", "C"),
    ("mdl_tutorial", 2004, "A Tutorial Introduction to the Minimum Description Length Principle", "Grünwald", "C"),
    ("machine_super_intelligence", 2008, "Machine Super Intelligence", "Legg", "C"),
    ("complexodynamics", 2011, "The First Law of Complexodynamics", "Aaronson", "C"),
    ("alexnet", 2012, "ImageNet Classification with Deep Convolutional Neural Networks",
     "Krizhevsky, Sutskever, Hinton", "T"),
    ("ntm", 2014, "Neural Turing Machines", "Graves, Wayne, Danihelka", "T"),
    ("coffee_automaton", 2014, "Quantifying the Rise and Fall of Complexity in Closed Systems: The Coffee Automaton",
     "Aaronson, Carroll, Ouellette", "C"),
    ("resnet", 2015, "Deep Residual Learning for Image Recognition", "He, Zhang, Ren, Sun", "T"),
    ("bahdanau", 2015, "Neural Machine Translation by Jointly Learning to Align and Translate",
     "Bahdanau, Cho, Bengio", "T"),
    ("pointer_networks", 2015, "Pointer Networks", "Vinyals, Fortunato, Jaitly", "T"),
    ("rnn_regularization", 2015, "Recurrent Neural Network Regularization", "Zaremba, Sutskever, Vinyals", "T"),
    ("char_rnn", 2015, "The Unreasonable Effectiveness of Recurrent Neural Networks", "Karpathy", "T"),
    ("lstm", 2015, "Understanding LSTM Networks", "Olah", "T"),
    ("deepspeech2", 2016, "Deep Speech 2: End-to-End Speech Recognition in English and Mandarin", "Amodei et al.", "T"),
    ("preact_resnet", 2016, "Identity Mappings in Deep Residual Networks", "He, Zhang, Ren, Sun", "T"),
    ("dilated", 2016, "Multi-Scale Context Aggregation by Dilated Convolutions", "Yu, Koltun", "T"),
    ("order_matters", 2016, "Order Matters: Sequence to Sequence for Sets", "Vinyals, Bengio, Kudlur", "T"),
    ("vlae", 2017, "Variational Lossy Autoencoder", "Chen et al.", "T"),
    ("relation_networks", 2017, "A Simple Neural Network Module for Relational Reasoning", "Santoro et al.", "T"),
    ("transformer", 2017, "Attention Is All You Need", "Vaswani et al.", "T"),
    ("kolmogorov", 2017, "Kolmogorov Complexity and Algorithmic Randomness", "Shen, Uspensky, Vereshchagin", "C"),
    ("mpnn", 2017, "Neural Message Passing for Quantum Chemistry", "Gilmer et al.", "T"),
    ("relational_rnn", 2018, "Relational Recurrent Neural Networks", "Santoro et al.", "T"),
    ("gpipe", 2019, "GPipe: Efficient Training of Giant Neural Networks using Pipeline Parallelism", "Huang et al.", "L"),
    ("scaling_laws", 2020, "Scaling Laws for Neural Language Models", "Kaplan et al.", "L"),
    ("cs231n", 2024, "CS231n: Convolutional Neural Networks for Visual Recognition", "Li, Karpathy et al.", "T"),
  )
)  # fmt: skip


def find_reading(name: str) -> Reading:
  """The reading of an id. Raises UserError where there is none."""
  for reading in READINGS:
    if reading.id == name:
      return reading
  names = [reading.id for reading in READINGS]
  raise UserError(f"unknown reading {name!r}{did_you_mean(name, names)}", f"one of {', '.join(names)}", "READING")


def claims_of(reading: Reading, root: Path) -> Sequence[Claim]:
  """The claims in experiments/<id>.py of the checkout at `root`, in order; none where there is no such file.

  Such a file may import others beside it, as `from experiments import <id>_figures`.
  """
  path = root / "experiments" / f"{reading.id}.py"
  if not path.is_file():
    return ()
  if str(root) not in sys.path:
    sys.path.insert(0, str(root))
  spec = importlib.util.spec_from_file_location(f"_experiment_{reading.id}", path)
  assert spec is not None
  assert spec.loader is not None
  module = importlib.util.module_from_spec(spec)
  spec.loader.exec_module(module)
  claims: Sequence[Claim] = module.CLAIMS
  return claims


def configs_of(reading: Reading, root: Path) -> list[str]:
  """Names of the reading's configs: configs/<id>.py with its variants."""
  path = root / "configs" / f"{reading.id}.py"
  if not path.is_file():
    return []
  scope: dict[str, Sequence[str]] = {}
  exec(compile(path.read_bytes(), str(path), "exec"), scope)
  return [f"configs/{reading.id}.py{':' if name else ''}{name}" for name in scope.get("VARIANTS", ("",))]


def checkout() -> Path:
  """The checkout that the process runs in. Raises UserError outside one."""
  root = Path.cwd()
  if not (root / "experiments").is_dir() or not (root / "configs").is_dir():
    raise UserError(f"no experiments/ and configs/ in {root}", "the root of a checkout of ilya_jax", "cd")
  return root

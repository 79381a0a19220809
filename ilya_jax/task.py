"""The contracts of the base: what the training loop asks of a model with its loss (Task) and of data (Source)."""

from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import jax
from jax.sharding import PartitionSpec

PyTree = Any
Batch = PyTree  # a tree of arrays whose leading axis is the global batch
Metrics = Mapping[str, tuple[jax.Array, jax.Array]]  # name -> (total, weight): summed over batches, divided once
Rules = tuple[tuple[str, PartitionSpec], ...]  # (regex on the parameter's path, how it is laid over the mesh)


class Counts(NamedTuple):
  """Size and cost of a task, by formula (`ilya_jax.scaling.counting`).

  n: parameters without embeddings, biases and norms (Kaplan et al. 2020, eq. 2.1, for the Transformer).
  n_total: all parameters.
  flops_per_unit: training FLOP (forward, backward) per unit: exact count of matrix products, attention unmasked, head.
  units_per_step: tokens (or examples) consumed by one optimizer step.
  unit: "tokens" or "examples".
  outside_flops_per_unit: the part of flops_per_unit that is not of the layers a pipeline may cut, the head of a language model.
  """

  n: int
  n_total: int
  flops_per_unit: float
  units_per_step: int
  unit: str = "tokens"
  outside_flops_per_unit: float = 0.0


class Layer(NamedTuple):
  """One layer of a list whose members differ.

  name: the key of its own parameters in `params`, and of its own state in each collection of the model state.
  apply(params, state, x, rng, *, train) -> (x, state): its own parameters and its own state ({} where it has none),
    activations with the batch axis first; the activations of neighbours may differ in shape.
  recomputes: whether it keeps its input alone for the backward pass (`ilya_jax.parallel.layers.recomputing`).
  """

  name: str
  apply: Callable[..., tuple[PyTree, PyTree]]
  recomputes: bool = False


class Stack(NamedTuple):
  """`length` equal layers, whose parameters (and state) under the key `name` have a leading axis of layers.

  apply, recomputes: as those of a Layer; unroll: how many layers are written out per iteration where they are run in turn.
  """

  name: str
  length: int
  apply: Callable[..., tuple[PyTree, PyTree]]
  unroll: int = 1
  recomputes: bool = False


class Pieces(NamedTuple):
  """A sequence model cut before and after its stack: enter(params, tokens, rng, *, train) -> x, whose batch stands at
  `batch_axis`; stack; and logits(params, x, rng, *, train) -> [B, T, V]."""

  enter: Callable[..., PyTree]
  stack: Stack
  logits: Callable[..., jax.Array]
  batch_axis: int = 0


class Layers(NamedTuple):
  """The layer list of a task, which a pipeline may cut: the loss is before, then every layer in turn, then after.

  before(params, batch, rng, *, train) -> x: what the first layer reads, a tree of floating-point arrays.
  after(params, x, batch, rng, *, train) -> (scalar, Metrics): the mean loss of the batch.
  Both get all parameters and may use any but those of the layers.
  batch_axis: where the batch stands in x; 0 in a list of layers that differ.
  """

  before: Callable[..., PyTree]
  layers: Stack | tuple[Layer, ...]
  after: Callable[..., tuple[jax.Array, Metrics]]
  batch_axis: int = 0


class Task(NamedTuple):
  """Pure functions that the loop trains.

  init(rng, batch) -> variables: {"params": tree, **model_state collections}.
  loss(params, model_state, batch, rng, *, train) -> (scalar, (Metrics, model_state)): the scalar is differentiated,
    `metrics` must hold "loss"; `train=False` is deterministic and leaves `model_state` as it is.
  rules: shardings of the parameters; the first regex found in a parameter's path wins, none means replicated.
  counts: size and cost by formula.
  predict(params, model_state, batch) -> arrays: what the model says of a batch, where that makes sense.
  layers: the list that a pipeline may cut; `loss` is then `ilya_jax.parallel.layers.in_turn(layers)`.
  scores(params, model_state, source, *, split) -> name -> number: what `ilya-jax eval` also says of a held-out set, and is no
    mean over its batches, as BLEU.
  continue_text(params, prompt, *, options) -> text: what `ilya-jax sample` prints, of a task that writes text. options: length,
    temperature, top_k and seed, None where not given. Raises UserError on a prompt or options that make no sense.
  """

  init: Callable[..., PyTree]
  loss: Callable[..., tuple[jax.Array, tuple[Metrics, PyTree]]]
  counts: Counts
  rules: Rules = ()
  predict: Callable[..., PyTree] | None = None
  layers: Layers | None = None
  scores: Callable[..., Mapping[str, float]] | None = None
  continue_text: Callable[..., str] | None = None


class Source(NamedTuple):
  """Data as a pure function of (config, seed, split, step).

  batch(step, *, split, rows=slice(None)) -> Batch: NumPy arrays for a host source, of the rows of the batch that are
    asked for (a process of several reads its own alone); traceable in `step` where `traced` is true, then without
    `rows` and sampled inside the compiled step. `split` is "train" or a name in `eval_batches`.
  eval_batches: held-out set -> how many batches it holds; batches 0..n-1 are the whole, fixed set.
  info: facts recorded with a run (fingerprint, documents, duplicates removed, unique training tokens `d_unique`, …).
  traced: whether `batch` may be called under jit.
  """

  batch: Callable[..., Batch]
  eval_batches: Mapping[str, int]
  info: Mapping[str, Any]
  traced: bool = False

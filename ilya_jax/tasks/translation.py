"""Translation (and copying): a model of the target given the source, with label smoothing, as a Task with its Source.

Vaswani et al. 2017, https://arxiv.org/abs/1706.03762, section 5.4 (label smoothing, Szegedy et al. 2016) and 6.1 (beam search);
tensor2tensor, where the paper is silent: the smoothed target leaves 1 - eps to the right token and shares eps among the V - 1 others.
BLEU is sacrebleu's (Post 2018, https://arxiv.org/abs/1804.08771) on detokenised text; the paper's is tokenised, and higher.
Letters: B batch, S source, T target, V vocabulary.

Perplexity is exp of `nll`, without smoothing and per token, END counted; `loss` is what is trained. PAD counts in neither.
"""

import functools
from collections.abc import Callable, Mapping
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
from ml_collections import ConfigDict

from ilya_jax.data.copying import copy_source
from ilya_jax.data.translation import BEGIN, END, PAD, SPECIALS, PairCorpus, load_pairs, pair_source
from ilya_jax.errors import UserError
from ilya_jax.models import seq2seq, transformer
from ilya_jax.models.sequence_search import Found, beam_search, greedy_search, spread
from ilya_jax.parallel.layers import in_turn
from ilya_jax.task import Metrics, Source, Task

MODELS = {"transformer": transformer, "seq2seq": seq2seq}
SHARINGS = ("others", "others_but_pad", "all")  # which tokens share eps: V - 1, V - 2 (The Annotated Transformer), V


def make_source(config: ConfigDict) -> Source:
  """The pairs of `config.data`, in batches {"source": [B, S], "target": [B, T + 1]}."""
  data = config.data
  if data.name == "copy":
    return copy_source(
      symbols=data.symbols, shortest=data.shortest, longest=data.longest, batch_size=config.batch_size,
      seed=config.seed, eval_pairs=config.eval.examples,
    )  # fmt: skip
  return pair_source(
    load_pairs(data), name=data.name, batch_size=config.batch_size, seed=config.seed, train_pairs=data.train_pairs,
    eval_pairs=config.eval.examples,
  )  # fmt: skip


def make_model(config: ConfigDict, source: Source) -> nn.Module:
  """The model of `config.model`. Raises UserError on an unknown name."""
  info = source.info
  longest = max(info["source_positions"], info["target_positions"])
  return _file_of(config).from_config(config, vocab_size=info["vocab_size"], longest=longest)


def _file_of(config: ConfigDict) -> Any:
  name = config.model.name
  if name not in MODELS:
    raise UserError(f"config.model.name = {name!r}", " or ".join(MODELS), "--config.model.name")
  return MODELS[name]


def make_task(config: ConfigDict, source: Source) -> Task:
  """The model with its loss of `config.smoothing`; `predict` searches as `config.eval` says."""
  if not 0 <= config.smoothing.epsilon < 1 or config.smoothing.shared_by not in SHARINGS:
    got = f"smoothing of {config.smoothing.epsilon}, shared by {config.smoothing.shared_by!r}"
    raise UserError(got, f"0 to 1, shared by one of {', '.join(SHARINGS)}", "--config.smoothing.epsilon or .shared_by")
  info, model = source.info, make_model(config, source)
  scored = functools.partial(score, epsilon=config.smoothing.epsilon, shared_by=config.smoothing.shared_by)

  def init(rng, batch):
    return model.init(rng, batch["source"], batch["target"][:, :-1], train=False)

  def measured(logits, batch):
    metrics = scored(logits, batch["target"][:, 1:])
    total, weight = metrics["loss"]
    return total / weight, metrics

  def loss(params, model_state, batch, rng, *, train):
    rngs = {"dropout": rng} if train else None
    logits = model.apply({"params": params}, batch["source"], batch["target"][:, :-1], train=train, rngs=rngs)
    scalar, metrics = measured(logits, batch)
    return scalar, (metrics, model_state)

  def predict(params, model_state, batch):
    return search(model, params, batch["source"], settings=config.eval).tokens

  sizes = {"source": info["source_positions"], "target": info["target_positions"]}
  file = _file_of(config)
  counts = file.counts(config, vocab_size=info["vocab_size"], **sizes)
  task = Task(
    init, loss, counts=counts, rules=file.RULES, predict=predict, scores=functools.partial(scores, config),
    continue_text=functools.partial(continue_text, config, source),
  )  # fmt: skip
  if not isinstance(model, transformer.Transformer):
    return task
  stack = transformer.layers(model)

  def after(params, x, batch, rng, *, train):
    return measured(stack.after(params, x, batch, rng, train=train), batch)

  layers = stack._replace(after=after)
  return task._replace(loss=in_turn(layers), layers=layers)


def score(logits: jax.Array, targets: jax.Array, *, epsilon: float, shared_by: str = "others") -> Metrics:
  """Metrics of logits [B, T, V] against targets [B, T]: `loss` (smoothed), `nll` (not), nats per token; `accuracy` of tokens."""
  chances = jax.nn.log_softmax(logits, axis=-1)
  there = (targets != PAD).astype(chances.dtype)  # [B, T]
  right = jnp.take_along_axis(chances, targets[..., None], axis=-1)[..., 0]
  vocab_size = logits.shape[-1]
  if shared_by == "all":
    smoothed = (1 - epsilon) * right + epsilon / vocab_size * chances.sum(-1)
  elif shared_by == "others":
    smoothed = (1 - epsilon) * right + epsilon / (vocab_size - 1) * (chances.sum(-1) - right)
  else:
    others = chances.sum(-1) - right - chances[..., PAD]
    smoothed = (1 - epsilon) * right + epsilon / (vocab_size - 2) * others
  count = there.sum()
  hits = (jnp.argmax(logits, axis=-1) == targets).astype(chances.dtype)
  return {
    "loss": (-(smoothed * there).sum(), count),
    "nll": (-(right * there).sum(), count),
    "accuracy": ((hits * there).sum(), count),
  }


def search(model: nn.Module, params: Any, sources: jax.Array, *, settings: Any) -> Found:
  """The likeliest targets of sources [B, S]: tokens int32 [B, S + settings.extra], PAD after END, and their scores.

  settings: `beams` (1: greedy), `alpha` of the length penalty, `extra` tokens at most beyond the source's positions.
  """
  rows, length = sources.shape[0], sources.shape[1] + settings.extra
  memory = model.apply({"params": params}, sources, method="remember")
  if settings.beams > 1:
    memory = spread(memory, settings.beams)
  state = model.apply({"params": params}, memory, length, method="begin")

  def step(tokens, state, index):
    return model.apply({"params": params}, tokens, state, index=index, memory=memory, method="step")

  limits = {"rows": rows, "length": length, "begin": BEGIN, "end": END, "never": (PAD, BEGIN)}
  if settings.beams > 1:
    return beam_search(step, state, beams=settings.beams, alpha=settings.alpha, **limits)
  return greedy_search(step, state, **limits)


def exact(found: jax.Array, targets: jax.Array) -> jax.Array:
  """Whether found [B, T'] is the target [B, T + 1] (BEGIN first) token by token, bool [B]; both have PAD after END."""
  width = max(found.shape[1], targets.shape[1] - 1)
  pad = lambda x: jnp.pad(x, ((0, 0), (0, width - x.shape[1])))  # noqa: E731
  return jnp.all(pad(found) == pad(targets[:, 1:]), axis=1)


def scores(
  config: ConfigDict, params: Any, model_state: Any, source: Source, *, split: str
) -> dict[str, float]:  # fmt: skip
  """What a held-out set's translations are worth, searched for as `config.eval` says: the share of those that are exact, and BLEU
  where there is text. Raises UserError where BLEU needs sacrebleu and it is not installed."""
  corpus = None if config.data.name == "copy" else load_pairs(config.data)
  bleu = None if corpus is None else _bleu()
  predict = jax.jit(functools.partial(_searched, make_model(config, source), settings=config.eval))
  found, wanted, hits = [], [], []
  for step in range(source.eval_batches[split]):
    batch = source.batch(step, split=split)
    tokens = predict(params, batch["source"])
    hits.append(np.asarray(exact(tokens, jnp.asarray(batch["target"]))))
    if corpus is not None:
      found += [corpus.text(row) for row in np.asarray(tokens)]
      wanted += [corpus.text(row) for row in np.asarray(batch["target"])]
  made = {"exact": float(np.concatenate(hits).mean())}
  if bleu is not None:
    made["bleu"] = bleu(found, wanted)
  return made


def _searched(model: nn.Module, params: Any, sources: jax.Array, *, settings: Any) -> jax.Array:
  return search(model, params, sources, settings=settings).tokens


def _bleu() -> Callable[[list[str], list[str]], float]:
  try:
    import sacrebleu
  except ImportError as error:
    raise UserError("BLEU without sacrebleu", "pip install 'ilya-jax[text]'", "ilya-jax eval") from error
  return lambda found, wanted: float(sacrebleu.corpus_bleu(found, [wanted]).score)


def continue_text(
  config: ConfigDict, source: Source, params: Any, prompt: str, *, options: Mapping[str, Any]
) -> str:  # fmt: skip
  """The translation of a sentence, for `ilya-jax sample`, searched for as `config.eval` says.

  options: temperature, top_k, length and seed, none of which a translation takes. Raises UserError on a prompt that is no
  sentence of the source's language, or too long.
  """
  for name, value in options.items():
    if value is not None:
      raise UserError(f"--{name.replace('_', '-')} with a translation", "a language model's run", f"--{name}")
  corpus = None if config.data.name == "copy" else load_pairs(config.data)
  tokens = _copied(prompt, config) if corpus is None else corpus.encoded(prompt, longest=config.data.longest)
  predict = jax.jit(functools.partial(_searched, make_model(config, source), settings=config.eval))
  found = np.asarray(predict(params, jnp.asarray(tokens)[None]))[0]
  if isinstance(corpus, PairCorpus):
    return corpus.text(found)
  return " ".join(str(token - SPECIALS) for token in found.tolist() if token >= SPECIALS)


def _copied(prompt: str, config: ConfigDict) -> np.ndarray:
  """`0 3 15 …`, the symbols of the copy task, as a source."""
  try:
    symbols = [int(part) for part in prompt.split()]
  except ValueError:
    symbols = []
  longest = config.data.longest
  if not 0 < len(symbols) <= longest or not all(0 <= symbol < config.data.symbols for symbol in symbols):
    expected = f"1 to {longest} numbers from 0 to {config.data.symbols - 1}, with spaces between"
    raise UserError(f"prompt {prompt!r}", expected, "--prompt")
  row = [symbol + SPECIALS for symbol in symbols] + [END]
  return np.asarray(row + [PAD] * (longest + 1 - len(row)), np.int32)

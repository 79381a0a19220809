"""Translation as a task: smoothing by formula, the schedule, what does not depend on padding, search, BLEU, samples."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from ilya_jax.config import load_config
from ilya_jax.data.translation import load_pairs
from ilya_jax.errors import UserError
from ilya_jax.tasks import translation
from ilya_jax.train.loop import prepare
from ilya_jax.train.optimizer import make_schedule
from ilya_jax.train.programs import make_programs

SPEC = "configs/transformer.py:tiny"
COPY = {"data.name": "copy", "data.longest": 6, "data.symbols": 5, "eval.examples": 8, "batch_size": 4, "eval.extra": 0}


def smoothed(vocab_size, epsilon, shared_by):
  """The target distribution of token 3, by hand."""
  target = np.full(
    vocab_size, epsilon / {"others": vocab_size - 1, "others_but_pad": vocab_size - 2, "all": vocab_size}[shared_by]
  )
  if shared_by == "all":
    target[3] += 1 - epsilon
  else:
    target[3] = 1 - epsilon
  if shared_by == "others_but_pad":
    target[0] = 0
  return target


@pytest.mark.parametrize(
  ("shared_by", "least"), [("others", 1.376948), ("others_but_pad", 1.376945), ("all", 1.376913)]
)
def test_the_least_smoothed_loss_is_the_entropy_of_its_target(shared_by, least):
  target = smoothed(37_000, 0.1, shared_by)
  assert target.sum() == pytest.approx(1)
  assert -(target[target > 0] * np.log(target[target > 0])).sum() == pytest.approx(least, abs=1e-6)
  logits = np.log(np.maximum(target, 1e-12)).astype(np.float32)[None, None]
  metrics = translation.score(jnp.asarray(logits), jnp.array([[3]]), epsilon=0.1, shared_by=shared_by)
  assert float(metrics["loss"][0]) == pytest.approx(least, abs=2e-5)
  assert float(metrics["nll"][0]) == pytest.approx(-np.log(target[3]), abs=1e-5)


def test_smoothed_loss_is_a_cross_entropy_and_optax_agrees_where_it_can():
  rng = np.random.default_rng(0)
  logits, targets = rng.normal(size=(2, 3, 5)).astype(np.float32), np.array([[3, 4, 3], [1, 3, 0]])
  assert smoothed(5, 0.4, "others_but_pad")[[1, 2, 4]] == pytest.approx([0.4 / 3] * 3)  # .1333 each, as Annotated
  chances = np.log(np.exp(logits) / np.exp(logits).sum(-1, keepdims=True))
  for shared_by in translation.SHARINGS:
    expected = 0.0
    for row, t in np.argwhere(targets != 0):
      target = np.roll(smoothed(5, 0.4, "all"), targets[row, t] - 3) if shared_by == "all" else None
      if target is None:
        others = [v for v in range(5) if v != targets[row, t] and not (v == 0 and shared_by == "others_but_pad")]
        target = np.zeros(5)
        target[others], target[targets[row, t]] = 0.4 / len(others), 0.6
      expected -= (target * chances[row, t]).sum()
    metrics = translation.score(jnp.asarray(logits), jnp.asarray(targets), epsilon=0.4, shared_by=shared_by)
    assert float(metrics["loss"][0]) == pytest.approx(expected, rel=1e-5)
    assert float(metrics["loss"][1]) == 5
  with jax.numpy_dtype_promotion("standard"):  # optax relies on it
    labels = optax.smooth_labels(jax.nn.one_hot(targets, 5), 0.4)
    theirs = (np.asarray(optax.softmax_cross_entropy(jnp.asarray(logits), labels)) * (targets != 0)).sum()
  assert float(metrics["loss"][0]) == pytest.approx(float(theirs), rel=1e-5)  # of the last, "all"
  hits = ((logits.argmax(-1) == targets) & (targets != 0)).sum()
  assert float(metrics["accuracy"][0]) == hits


def test_the_schedule_of_the_paper():
  for spec, rates in (("", {1: 1.746928e-7, 4_000: 6.987712e-4, 100_000: 1.397542e-4}), ("big", {4_000: 4.941059e-4})):
    config = load_config(f"configs/transformer.py:{spec}" if spec else "configs/transformer.py")
    schedule = make_schedule(config.schedule, learning_rate=config.optim.learning_rate, steps=config.steps)
    for step, rate in rates.items():  # counted from 1
      assert float(schedule(step - 1)) == pytest.approx(rate, rel=1e-5)


@pytest.fixture(scope="module")
def copier():
  """(config, task, source, parameters) of a small copier."""
  config = load_config(SPEC, COPY)
  task, source, _ = prepare(config)
  return config, task, source, jax.jit(task.init)(jax.random.key(0), source.batch(0, split="train"))["params"]


def test_the_loss_by_layers_is_that_of_the_whole_model_and_pads_do_not_count(copier):
  config, task, source, params = copier
  batch = source.batch(0, split="train")
  model = translation.make_model(config, source)

  @jax.jit
  def both(batch):
    logits = model.apply({"params": params}, batch["source"], batch["target"][:, :-1], train=False)
    expected = translation.score(logits, batch["target"][:, 1:], epsilon=0.0)
    return task.loss(params, {}, batch, jax.random.key(0), train=False)[1][0], expected

  found, expected = both(batch)
  padded, _ = both(jax.tree.map(lambda leaf: jnp.pad(leaf, ((0, 0), (0, 3))), batch))
  for name, (total, weight) in expected.items():
    for other in (found, padded):
      assert float(other[name][0]) == pytest.approx(float(total), rel=1e-5)
      assert float(other[name][1]) == float(weight)


def test_a_greedy_translation_is_the_likeliest_next_token_of_the_whole_model_each_time(copier):
  config, task, source, params = copier
  batch = source.batch(0, split="heldout")
  model = translation.make_model(config, source)
  found = np.asarray(jax.jit(task.predict)(params, {}, batch))
  assert found.shape == (8, 7)
  logits = jax.jit(lambda target: model.apply({"params": params}, batch["source"], target, train=False))
  target = np.full((8, 7), 0, np.int32)
  target[:, 0] = 1
  ended = np.zeros(8, bool)
  for t in range(7):
    scores = np.array(logits(target))[:, t]
    scores[:, :2] = -np.inf  # PAD and BEGIN are never written
    chosen = np.where(ended, 0, scores.argmax(-1))
    np.testing.assert_array_equal(found[:, t], chosen)
    ended |= chosen == 2
    if t < 6:
      target[:, t + 1] = chosen


def test_exact_is_token_by_token_up_to_the_end():
  target = jnp.array([[1, 5, 6, 2, 0], [1, 5, 6, 2, 0]])
  found = jnp.array([[5, 6, 2, 0, 0, 0], [5, 6, 7, 2, 0, 0]])
  np.testing.assert_array_equal(translation.exact(found, target), [True, False])


def test_scores_of_a_perfect_translator(monkeypatch, tmp_path):
  sacrebleu = pytest.importorskip("sacrebleu", reason="needs sacrebleu: pip install 'ilya-jax[text]'")
  monkeypatch.setenv("ILYA_JAX_CACHE", str(tmp_path))
  config = load_config(SPEC, {"eval.examples": 12})
  source = translation.make_source(config)
  answers = {bytes(np.asarray(b["source"])): b["target"] for b in [source.batch(0, split="heldout")]}

  def perfect(model, params, sources, *, settings):
    (target,) = answers.values()
    return jnp.asarray(target[:, 1:])

  monkeypatch.setattr(translation, "_searched", perfect)
  assert translation.scores(config, {}, {}, source, split="heldout") == pytest.approx({"exact": 1.0, "bleu": 100.0})
  corpus = load_pairs(config.data)
  texts = [corpus.text(row) for row in next(iter(answers.values()))]
  wrong = [text.replace(text.split()[0], "x", 1) for text in texts]
  monkeypatch.setattr(translation, "_searched", lambda *_, settings: jnp.asarray(wrong_rows(corpus, wrong)))
  found = translation.scores(config, {}, {}, source, split="heldout")
  assert found["bleu"] == pytest.approx(sacrebleu.corpus_bleu(wrong, [texts]).score)
  assert found["exact"] == 0.0


def wrong_rows(corpus, texts):
  return np.stack([corpus.encoded(text, longest=60) for text in texts])


@pytest.mark.parametrize(("changes", "words"), [
  ({"model.name": "rnn"}, "model.name"), ({"smoothing.epsilon": 1.0}, "smoothing"), ({"smoothing.shared_by": "some"}, "smoothing"),
])  # fmt: skip
def test_bad_settings_are_refused(changes, words):
  with pytest.raises(UserError, match=words):
    prepare(load_config(SPEC, {**COPY, **changes}))


def test_a_sample_of_the_copy_task_wants_its_symbols(copier):
  config, _, source, params = copier
  none = dict.fromkeys(("length", "temperature", "top_k", "seed"))
  assert all(
    0 <= int(symbol) < 5 for symbol in translation.continue_text(config, source, params, "1 4 2", options=none).split()
  )
  for prompt in ("", "1 5", "a", "1 " * 7):
    with pytest.raises(UserError, match="--prompt"):
      translation.continue_text(config, source, params, prompt, options=none)
  with pytest.raises(UserError, match="--top-k"):
    translation.continue_text(config, source, params, "1", options={**none, "top_k": 3})


@pytest.mark.slow
@pytest.mark.parametrize("mesh", [
  {"mesh.stage": 2, "pipeline.microbatches": 2}, {"mesh.data": 2, "mesh.fsdp": 2, "mesh.tensor": 2},
])  # fmt: skip
def test_split_over_devices_it_is_the_same_model(mesh):
  """Encoder and decoder layers as stages of a pipeline, and parameters split; strings of one length, as micro-batches' losses
  are averaged."""
  alike = {**COPY, "data.shortest": 6, "batch_size": 8, "mesh.data": 1, "execution.steps_per_dispatch": 1}
  results = []
  for changes in ({}, mesh):
    config = load_config(SPEC, {**alike, **changes})
    task, source, _ = prepare(config)
    programs = make_programs(config, task=task, source=source)
    _, metrics = programs.steps(programs.init(jnp.uint32(0)), None, np.float32([1e-3]), np.int32(1))
    results.append([float(metrics[name][0][0] / metrics[name][1][0]) for name in ("loss", "nll", "grad_norm")])
  np.testing.assert_allclose(*results, rtol=1e-5)

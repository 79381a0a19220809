"""Token corpora: nothing held out is seen in training, a cache that survives damage and races, pure sampling."""

import json
import multiprocessing
import os
from types import SimpleNamespace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from ilya_jax.data import corpora, tokens
from ilya_jax.data.corpora import Documents
from ilya_jax.errors import UserError


def _data(path="", **changes):
  fields = {"name": "files", "tokenizer": "bytes", "vocab_size": 300, "heldout_fraction": 0.3}
  return SimpleNamespace(**{**fields, "path": str(path), **changes})


@pytest.fixture
def folder(monkeypatch, tmp_path):
  """A folder of 20 texts, and an empty cache."""
  monkeypatch.setenv("ILYA_JAX_CACHE", str(tmp_path / "cache"))
  rng = np.random.default_rng(0)
  (tmp_path / "texts").mkdir()
  for index in range(20):
    words = " ".join(str(number) for number in rng.integers(0, 10**6, 200))
    (tmp_path / "texts" / f"{index}.txt").write_text(f"text {index}: {words}")
  return tmp_path / "texts"


def _normalised(text):
  return b" ".join(text.split())


SHORT = [b"alpha", b"beta  \t gamma", b"}"]
LONG = [bytes([letter]) * 60 + b" " + bytes([letter]) * 60 for letter in b"abcd"]
SPACED = [part.replace(b" ", b" \n  ") for part in LONG]  # the same paragraphs but for white space
TEXTS = st.lists(
  st.lists(st.sampled_from(SHORT + LONG + SPACED), max_size=4).map(lambda parts: b"\n \n".join([*parts, b""])),
  max_size=6,
)


@settings(deadline=None, max_examples=300)
@given(train=TEXTS, heldout=TEXTS)
def test_nothing_held_out_occurs_in_training(train, heldout):
  documents = Documents(None, lambda: (("", text) for text in train), lambda: (("", text) for text in heldout))
  kept, removed = tokens.held_out_texts(documents)
  trained = list(tokens.distinct(documents.train()))

  def paragraphs(texts):
    parts = {_normalised(part) for text in texts for part in text.split(b"\n \n")}
    return {part for part in parts if len(part) >= 100}

  whole = [_normalised(text) for text in kept]
  assert not set(whole) & set(map(_normalised, trained))
  assert not paragraphs(kept) & paragraphs(train)
  assert len(whole) == len(set(whole))
  assert b"" not in whole
  # What only the held-out side has is still there, and everything is accounted for.
  assert paragraphs(kept) == paragraphs(heldout) - paragraphs(train)
  nonempty = [text for text in train if text.strip()]
  assert removed["train_documents"] == len(nonempty) - len(trained)
  assert {_normalised(text) for text in trained} == {_normalised(text) for text in nonempty}


def test_duplicates_are_counted_where_they_are():
  long = b"a paragraph that stands on both sides of the split and has more than a hundred characters, as one can count"
  train = [b"one", b" one ", long + b"\n\nrest", b"left over"]
  heldout = [b"one", b"new\n\n" + long + b"\n\nmore", long + b"\n\nleft over", b"own", b"own", b"  "]
  documents = Documents(None, lambda: (("", text) for text in train), lambda: (("", text) for text in heldout))
  kept, removed = tokens.held_out_texts(documents)
  assert kept == [b"new\n\nmore", b"own"]
  assert removed == {"documents": 2, "paragraphs": 2, "train_documents": 1, "heldout_documents": 1}


@pytest.mark.parametrize("tokenizer", ["bytes", "bpe"])
def test_streams_are_the_documents_with_separators(folder, tokenizer):
  corpus = tokens.load_corpus(_data(folder, tokenizer=tokenizer))
  documents = corpora.open_documents("files", path=str(folder), heldout_fraction=0.3)
  for stream, side, count, length in (
    (corpus.train, documents.train, corpus.train_documents, corpus.train_bytes),
    (corpus.heldout, documents.heldout, corpus.heldout_documents, corpus.heldout_bytes),
  ):
    texts = [text for _, text in side()]
    assert corpus.tokenizer.decode(stream) == b"".join(text + b"\0" for text in texts)
    assert count == len(texts)
    assert length == corpus.token_bytes[stream].sum() == sum(map(len, texts)) + len(texts)
  starts = np.concatenate([[0], corpus.heldout_document_ends])
  pieces = [corpus.tokenizer.decode(corpus.heldout[a:b]) for a, b in zip(starts, starts[1:], strict=False)]
  assert pieces == [text + b"\0" for _, text in documents.heldout()]
  assert corpus.vocab_size == len(corpus.token_bytes) == corpus.tokenizer.vocab_size
  assert corpus.train.dtype == (np.uint8 if tokenizer == "bytes" else np.uint16)
  assert corpus.fingerprint[:12] in tokens.describe(corpus)


def test_bpe_learns_from_training_documents_alone(folder):
  heldout = {name for name, _ in corpora.open_documents("files", path=str(folder), heldout_fraction=0.3).heldout()}
  before = tokens.load_corpus(_data(folder, tokenizer="bpe"))
  for name in heldout:
    (folder / name).write_text("zebra " * 500)
  after = tokens.load_corpus(_data(folder, tokenizer="bpe"))
  assert before.tokenizer.to_json() == after.tokenizer.to_json()
  assert before.fingerprint != after.fingerprint


def test_second_load_reads_no_document(folder, monkeypatch):
  lines = []
  first = tokens.load_corpus(_data(folder), report=lines.append)
  monkeypatch.setattr(corpora, "_read", None)
  second = tokens.load_corpus(_data(folder), report=lines.append)
  assert len(lines) == 1
  assert first.fingerprint == second.fingerprint
  assert isinstance(second.train, np.memmap)
  np.testing.assert_array_equal(first.train, second.train)


def test_fingerprint_names_the_content_and_not_the_place(folder, tmp_path):
  before = tokens.load_corpus(_data(folder)).fingerprint
  os.utime(folder / "3.txt", ns=(0, 1))
  assert tokens.load_corpus(_data(folder)).fingerprint == before
  folder.rename(tmp_path / "elsewhere")
  moved = _data(tmp_path / "elsewhere")
  assert tokens.load_corpus(moved).fingerprint == before
  assert tokens.load_corpus(_data(moved.path, tokenizer="bpe")).fingerprint != before
  (tmp_path / "elsewhere" / "3.txt").write_text("changed")
  assert tokens.load_corpus(moved).fingerprint != before


def _entry(tmp_path):
  (entry,) = (path for path in (tmp_path / "cache" / "corpora").iterdir() if path.is_dir())
  return entry


@pytest.mark.parametrize(
  "file", ["train.bin", "heldout.bin", "facts.json", "tokenizer.json", "token_bytes.npy", "heldout_document_ends.npy"]
)
@pytest.mark.parametrize("damage", ["truncated", "emptied", "changed", "deleted"])
def test_damaged_entry_is_rebuilt(folder, tmp_path, file, damage):
  fingerprint = tokens.load_corpus(_data(folder, tokenizer="bpe")).fingerprint
  path = _entry(tmp_path) / file
  content = path.read_bytes()
  if damage == "deleted":
    path.unlink()
  elif damage == "changed":
    path.write_bytes(bytes(255 - byte for byte in content))
    os.utime(path, ns=(0, 1))
  else:
    path.write_bytes(content[: len(content) // 2] if damage == "truncated" else b"")
  corpus = tokens.load_corpus(_data(folder, tokenizer="bpe"))
  assert corpus.fingerprint == fingerprint
  assert path.read_bytes() == content or file == "facts.json"
  assert len(list((tmp_path / "cache" / "corpora").iterdir())) == 2  # the entry and its lock


def test_rest_of_a_killed_build_is_swept_away(folder, tmp_path):
  tokens.load_corpus(_data(folder))
  entry = _entry(tmp_path)
  unfinished = entry.with_suffix(".unfinished")
  entry.rename(unfinished)
  (unfinished / "facts.json").unlink()
  tokens.load_corpus(_data(folder))
  assert not unfinished.exists()


def _load_in_process(path, barrier, results):
  lines = []
  barrier.wait()
  corpus = tokens.load_corpus(_data(path), report=lines.append)
  results.put((corpus.fingerprint, len(lines)))


def test_processes_that_start_together_build_once(folder):
  context = multiprocessing.get_context("spawn")
  barrier, results = context.Barrier(3), context.Queue()
  processes = [context.Process(target=_load_in_process, args=(folder, barrier, results)) for _ in range(3)]
  for process in processes:
    process.start()
  found = [results.get(timeout=120) for _ in processes]
  for process in processes:
    process.join()
  results.close()
  assert len({fingerprint for fingerprint, _ in found}) == 1
  assert sum(built for _, built in found) == 1


def test_cache_that_cannot_be_written_is_bad_input(folder, monkeypatch, tmp_path):
  (tmp_path / "a_file").write_text("")
  monkeypatch.setenv("ILYA_JAX_CACHE", str(tmp_path / "a_file"))
  with pytest.raises(UserError, match="a_file cannot be written .*; set the environment variable ILYA_JAX_CACHE"):
    tokens.load_corpus(_data(folder))


def test_full_disk_leaves_no_entry(folder, monkeypatch, tmp_path):
  def full(_):
    raise OSError(28, "No space left on device")

  monkeypatch.setattr(tokens, "_flush_to_disk", full)
  with pytest.raises(UserError, match="No space left on device"):
    tokens.load_corpus(_data(folder))
  assert [path.suffix for path in (tmp_path / "cache" / "corpora").iterdir()] == [".lock"]


def test_corpus_that_is_empty_on_one_side_is_refused(folder):
  for index in range(20):
    (folder / f"{index}.txt").write_text("the same everywhere")
  with pytest.raises(UserError, match="1 training and 0 held-out documents"):
    tokens.load_corpus(_data(folder))


def test_unknown_tokenizer_is_refused(folder):
  with pytest.raises(UserError, match="data.tokenizer = 'words'; 'bytes' or 'bpe'"):
    tokens.load_corpus(_data(folder, tokenizer="words"))


def _numbered(length, heldout=2000):
  """A corpus whose token at each position is the position itself."""
  return tokens.Corpus(
    name="numbers",
    train=np.arange(length, dtype=np.uint32),
    heldout=np.arange(heldout, dtype=np.uint32),
    train_documents=1,
    heldout_documents=1,
    heldout_document_ends=np.asarray([heldout]),
    train_bytes=length,
    heldout_bytes=heldout,
    vocab_size=max(length, heldout),
    token_bytes=np.ones(max(length, heldout), np.int32),
    fingerprint="0" * 64,
    duplicates_removed={"documents": 0, "paragraphs": 0},
    tokenizer=None,
  )


def _source(corpus, **changes):
  return tokens.token_source(corpus, **{"batch_size": 4, "context": 8, "seed": 0, "eval_tokens": 512, **changes})


def _examples(source, batch_size, number):
  rows = [source.batch(step)["tokens"] for step in range(-(-number // batch_size))]
  return np.concatenate(rows)[:number]


@settings(deadline=None, max_examples=100)
@given(length=st.integers(60, 400), context=st.integers(1, 12), seed=st.integers(-(2**40), 2**70))
def test_an_epoch_predicts_each_token_at_most_once(length, context, seed):
  source = _source(_numbered(length), context=context, seed=seed)
  windows = (length - context) // context
  rows = _examples(source, 4, 2 * windows)
  assert np.array_equal(rows - rows[:, :1], np.broadcast_to(np.arange(context + 1), rows.shape))  # contiguous
  for epoch in (rows[:windows], rows[windows:]):
    targets = epoch[:, 1:].ravel()
    assert len(np.unique(targets)) == len(targets) > length - 2 * context


def test_order_of_examples_depends_on_seed_alone():
  corpus = _numbered(1000)
  expected = _examples(_source(corpus), 4, 300)
  for batch_size in (1, 7, 64):
    np.testing.assert_array_equal(_examples(_source(corpus, batch_size=batch_size), batch_size, 300), expected)
  assert not np.array_equal(_examples(_source(corpus, seed=1), 4, 300), expected)
  epoch = (1000 - 8) // 8
  assert not np.array_equal(expected[:epoch], expected[epoch : 2 * epoch])


def test_batches_need_nothing_but_the_step():
  corpus = _numbered(1000)
  source = _source(corpus)
  order = np.random.default_rng(0).permutation(200)
  shuffled = {step: source.batch(int(step), split="train")["tokens"] for step in order}
  for step in (0, 31, 61, 62, 150, 199):  # an epoch ends within step 31
    np.testing.assert_array_equal(shuffled[step], _source(corpus).batch(np.int64(step))["tokens"])


def test_held_out_set_does_not_depend_on_batch_size_or_seed():
  corpus = _numbered(1000, heldout=3000)
  expected = _source(corpus)
  for changes in ({"batch_size": 9}, {"seed": 5}):
    source = _source(corpus, **changes)
    assert source.eval_batches == expected.eval_batches
    for step in range(expected.eval_batches["heldout"]):
      np.testing.assert_array_equal(
        source.batch(step, split="heldout")["tokens"], expected.batch(step, split="heldout")["tokens"]
      )


@settings(deadline=None, max_examples=200)
@given(
  length=st.integers(2, 5000),
  context=st.one_of(st.integers(1, 64), st.sampled_from([128, 1024])),
  eval_tokens=st.integers(1, 6000),
)
def test_held_out_windows_are_apart_and_spread_from_end_to_end(length, context, eval_tokens):
  possible = min(eval_tokens, length - 1) // context
  if possible:
    starts = tokens.eval_window_starts(length, context=context, eval_tokens=eval_tokens)
    windows = starts.size
    assert possible - possible // 16 - 7 <= windows <= possible
    assert starts.shape[1].bit_count() == 1
    assert starts.shape[1] * context <= max(8192, 8 * context)
    gaps = np.diff(starts.ravel())
    assert np.all(gaps >= context)
    assert windows < 3 or gaps.max() - gaps.min() <= 1
    assert starts.flat[0] == 0
    assert windows == 1 or starts.flat[-1] + context == length - 1


def test_source_states_its_facts():
  source = _source(_numbered(1000))
  assert not source.traced
  assert source.info["d_unique_total"] == 1000
  assert source.info["heldout_tokens"] == source.eval_batches["heldout"] * 8 * len(
    source.batch(0, split="heldout")["tokens"]
  )
  json.dumps(source.info)
  assert tokens.unique_tokens(300, _numbered(1000)) == 300
  assert tokens.unique_tokens(3000, _numbered(1000)) == 1000
  with pytest.raises(ValueError, match="'validation'"):
    source.batch(0, split="validation")


@pytest.mark.parametrize(
  ("changes", "message"),
  [
    ({"batch_size": 0}, "batch_size = 0"),
    ({"context": 0}, "data.context = 0"),
    ({"context": 500}, "windows of 500; at least one batch of 4"),
    ({"batch_size": 200}, "124 windows of 8; at least one batch of 200"),
    ({"eval_tokens": 7}, "2000 held-out tokens in numbers and eval_tokens = 7"),
  ],
)
def test_corpus_too_small_for_the_sizes_is_refused(changes, message):
  with pytest.raises(UserError, match=message):
    _source(_numbered(1000), **changes)


@pytest.mark.slow
def test_standard_library_corpus(monkeypatch, tmp_path):
  """The embedded default: enough text, and no held-out document or long paragraph in training."""
  monkeypatch.setenv("ILYA_JAX_CACHE", str(tmp_path))
  corpus = tokens.load_corpus(_data(name="stdlib", heldout_fraction=0.05))
  assert corpus.train_bytes > 7e6
  assert corpus.heldout_bytes > 2.5e5
  assert corpus.token_bytes[corpus.train].sum() == corpus.train_bytes

  def split(stream):
    texts = bytes(stream).split(b"\0")[:-1]
    paragraphs = {_normalised(part) for text in texts for part in text.replace(b"\r\n", b"\n").split(b"\n\n")}
    return {_normalised(text) for text in texts}, {part for part in paragraphs if len(part) >= 100}

  train_texts, train_paragraphs = split(corpus.train)
  heldout_texts, heldout_paragraphs = split(corpus.heldout)
  assert len(heldout_texts) == corpus.heldout_documents
  assert len(train_texts) == corpus.train_documents
  assert not train_texts & heldout_texts
  assert not train_paragraphs & heldout_paragraphs

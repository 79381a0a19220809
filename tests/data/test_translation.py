"""Pairs of sentences: the help's paragraphs, the invented language, tokens, splits, batches; the copy task and places back."""

import collections
from html.parser import HTMLParser
from types import SimpleNamespace

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from ilya_jax.data import corpora, help_pages, invented_language, translation
from ilya_jax.data.copying import copies, copy_source
from ilya_jax.data.places_back import BACK, answers, places_back_source
from ilya_jax.errors import UserError
from ilya_jax.models import transformer

PAGE = """<html><head><title>Not this</title></head><body><p dir="auto">nor this</p>
<h1 id="hd_id1" dir="auto">Caf&eacute; &amp; bar</h1><div><p id="par_id2" class="paragraph" dir="auto">Choose
<span class="emph">File - <!-- a > b -->New</span>.<br>Then&nbsp;go.</p></div><table><td><p id="par_id3">x = 2</p></td>
<p id="par_id4" class="x">Unclosed <a href="#a>b">link</a><h2 id="hd_id5">Next</h2></table></body></html>"""


def test_named_paragraphs_of_a_page():
  assert help_pages.paragraphs(PAGE.replace("#a>b", "#a")) == [
    ("hd_id1", "Café & bar"), ("par_id2", "Choose File - New. Then go."), ("par_id4", "Unclosed link"), ("hd_id5", "Next"),
  ]  # fmt: skip


class _Reader(HTMLParser):
  """Python's own parser, collecting the text of named paragraphs."""

  def __init__(self):
    super().__init__()
    self.found, self.name = {}, None

  def handle_starttag(self, tag, attributes):
    if tag in ("p", "h1", "h2"):
      self.name = dict(attributes).get("id")
    if tag == "br" and self.name:
      self.found[self.name] = self.found.get(self.name, "") + " "

  def handle_endtag(self, tag):
    if tag in ("p", "h1", "h2"):
      self.name = None

  def handle_data(self, data):
    if self.name:
      self.found[self.name] = self.found.get(self.name, "") + data


def test_paragraphs_are_those_of_an_html_parser():
  page = PAGE.replace("#a>b", "#a")
  reader = _Reader()
  reader.feed(page)
  expected = {name: " ".join(text.split()) for name, text in reader.found.items()}
  assert dict(help_pages.paragraphs(page)) == {name: text for name, text in expected.items() if name != "par_id3"}


@pytest.fixture
def help_folder(monkeypatch, tmp_path):
  """A help of 40 pages in two languages, in which page 3 quotes a paragraph of page 0."""
  monkeypatch.setenv("ILYA_JAX_CACHE", str(tmp_path))
  words = "open close save print table chart cell line page file".split()
  others = "ouvrir fermer sauver imprimer tableau diagramme cellule ligne page fichier".split()
  rng = np.random.default_rng(0)
  for page in range(40):
    drawn = rng.integers(0, 10, (5, 6))
    for language, lexicon in (("en-US", words), ("fr", others)):
      lines = [f'<p id="par_id{page}{k}">{" ".join(lexicon[w] for w in row)}</p>' for k, row in enumerate(drawn)]
      lines += ['<p id="par_q">quoted everywhere</p>' if language == "en-US" else '<p id="par_q">partout</p>']
      lines += ['<p id="par_same">com.sun.star</p>']
      folder = tmp_path / "raw" / "libreoffice_help" / language / "text"
      folder.mkdir(parents=True, exist_ok=True)
      (folder / f"{page:02d}.html").write_text("\n".join(lines))
  return tmp_path


def data_of(**changes):
  fields = {"name": "libreoffice_help", "path": "", "languages": ("en-US", "fr"), "vocab_size": 300, "longest": 40,
            "heldout_fraction": 0.2}  # fmt: skip
  return SimpleNamespace(**{**fields, **changes})


@pytest.mark.usefixtures("help_folder")
def test_the_help_is_split_by_page_and_freed_of_repeats_and_of_what_was_not_translated():
  corpus = translation.load_pairs(data_of())
  parts = {
    split: [(corpus.text(s), corpus.text(t[1:])) for s, t in zip(*part, strict=True)]
    for split, part in corpus.parts.items()
  }
  assert set(parts) == {"train", "heldout"}
  assert all(len(set(own)) == len(own) for own in parts.values())
  sides = [{text for pair in own for text in pair} for own in parts.values()]
  assert not sides[0] & sides[1]
  assert ("quoted everywhere", "partout") in parts["train"]
  pages = [f"text/{page:02d}.html" for page in range(40)]
  held_out = [page for page in pages if corpora.is_held_out(page, 0.2)]
  assert 0 < len(held_out) < 20
  assert len(parts["heldout"]) == 5 * len(held_out)
  assert not any("com.sun" in text for side in sides for text in side)
  again = translation.load_pairs(data_of())
  assert again.facts["fingerprint"] == corpus.facts["fingerprint"]


@pytest.mark.usefixtures("help_folder")
def test_the_english_help_is_a_corpus_of_pages():
  documents = corpora.open_documents("libreoffice_help", path="", heldout_fraction=0.2)
  train, heldout = dict(documents.train()), dict(documents.heldout())
  assert len(train) + len(heldout) == 40
  assert not set(train) & set(heldout)
  assert sum(text.count(b"quoted everywhere") for text in (*train.values(), *heldout.values())) == 1


def test_help_that_is_not_there_names_the_command(monkeypatch, tmp_path):
  monkeypatch.setenv("ILYA_JAX_CACHE", str(tmp_path))
  for load in (
    lambda: translation.load_pairs(data_of(heldout_fraction=0.3)),
    lambda: corpora.open_documents("libreoffice_help", path="", heldout_fraction=0.1),
  ):
    with pytest.raises(UserError, match="run scripts/fetch_data libreoffice_help"):
      load()


def test_every_invented_sentence_is_translated_by_rule():
  """Word for word with the lexicon: order, cases and agreement, read back from the translation."""
  words = invented_language.lexicon()
  pairs = invented_language.sentences(np.random.default_rng(0), words, count=300)
  assert pairs == invented_language.sentences(np.random.default_rng(0), words, count=300)
  assert len(dict(pairs)) > 290
  stems = {here: there for own in words.stems.values() for here, there in zip(*own, strict=True)}
  assert len(stems) == sum(len(here) for here, _ in words.stems.values())
  for source, target in pairs:
    for clause, other in zip(source.split(" and "), target.split(" ke "), strict=True):
      there = other.split()
      known = [word for word in clause.split() if word not in ("the", "some", "will")]
      stemmed = [next(stem for stem in (w, w[:-1], w[:-2]) if stem in stems) for w in known]
      starts = [next(k for k, word in enumerate(there) if word.startswith(stems[stem])) for stem in stemmed]
      assert len(known) == len(there)
      assert set(starts) <= set(range(len(there)))
      verb = next(k for k, stem in enumerate(stemmed) if stem in words.stems["verb"][0])
      assert there[-1].startswith(stems[stemmed[verb]])
      subject = known[verb - 1]
      ending = "uin" if subject not in stems else "u"
      assert stems[stemmed[verb - 1]] + ending in there
      assert there[-1].endswith("nt" if ending == "uin" else "et")


def test_tokens_batches_and_texts_go_round(monkeypatch, tmp_path):
  monkeypatch.setenv("ILYA_JAX_CACHE", str(tmp_path))
  corpus = translation.load_pairs(data_of(name="invented", vocab_size=400, longest=40, languages=("", "")))
  assert corpus.vocab_size == 400
  source = translation.pair_source(corpus, name="invented", batch_size=8, seed=3, train_pairs=100, eval_pairs=70)
  assert source.eval_batches == {"heldout": 2}
  assert source.batch(1, split="heldout")["source"].shape == (20, 41)
  batch = source.batch(0, split="train")
  assert batch["source"].shape == (8, 41)
  assert batch["target"].shape == (8, 42)
  assert (batch["target"][:, 0] == translation.BEGIN).all()
  for row in batch["source"]:
    text = corpus.text(row)
    np.testing.assert_array_equal(corpus.encoded(text, longest=40), row)
  seen = collections.Counter()
  for step in range(25):  # two epochs
    seen.update(map(bytes, source.batch(step, split="train")["source"]))
  assert set(seen.values()) == {2}
  assert len(seen) == 100
  np.testing.assert_array_equal(
    source.batch(9, split="train", rows=slice(2, 5))["target"], source.batch(9, split="train")["target"][2:5]
  )
  more = translation.pair_source(corpus, name="invented", batch_size=8, seed=3, train_pairs=200)
  larger = {bytes(row) for step in range(25) for row in more.batch(step, split="train")["source"]}
  assert set(seen) <= larger
  assert more.info["fingerprint"] != source.info["fingerprint"]
  for text in ("", "word " * 60):
    with pytest.raises(UserError, match="--prompt"):
      corpus.encoded(text, longest=40)


def test_bad_data_is_refused(monkeypatch, tmp_path):
  monkeypatch.setenv("ILYA_JAX_CACHE", str(tmp_path))
  for changes, words in (
    ({"name": "opus"}, "data.name"), ({"name": "invented", "longest": 0}, "data.longest"),
    ({"name": "invented", "longest": 1}, "no train pairs"), ({"name": "invented", "vocab_size": 100}, "vocab_size"),
  ):  # fmt: skip
    with pytest.raises(UserError, match=words):
      translation.load_pairs(data_of(**changes))


def test_special_tokens_of_data_and_model_agree():
  assert transformer.PAD == translation.PAD


def test_tfds_pairs_are_read_by_language(monkeypatch, tmp_path):
  monkeypatch.setenv("ILYA_JAX_CACHE", str(tmp_path))
  rows = {"train": [{"en": f"good day number {k}", "de": f"guten tag nummer {k}".encode()} for k in range(60)],
          "validation": [{"en": "a new day", "de": b"ein neuer tag"}, rows_shared()]}  # fmt: skip
  builder = SimpleNamespace(info=SimpleNamespace(full_name="made_up/1"))
  monkeypatch.setattr(translation, "open_builder", lambda name, path: (builder, set(rows)))
  monkeypatch.setattr(translation, "open_split", lambda name, builder, split: rows[split])
  corpus = translation.load_pairs(data_of(name="tfds:made_up/de-en", languages=("en", "de"), longest=40))
  assert {split: len(part.source) for split, part in corpus.parts.items()} == {"train": 60, "validation": 1}
  assert corpus.text(corpus.parts["validation"].target[0][1:]) == "ein neuer tag"


def rows_shared():
  """A held-out pair whose source stands in training."""
  return {"en": "good day number 3", "de": b"etwas anderes"}


def test_copies():
  batch = jax.jit(lambda rng: copies(rng, rows=400, symbols=5, shortest=2, longest=6))(jax.random.key(0))
  source, target = np.asarray(batch["source"]), np.asarray(batch["target"])
  assert source.shape == (400, 7)
  np.testing.assert_array_equal(source, target[:, 1:])
  lengths = (source >= translation.SPECIALS).sum(1)
  assert set(lengths.tolist()) == set(range(2, 7))
  assert all(row[n] == translation.END and (row[n + 1 :] == 0).all() for row, n in zip(source, lengths, strict=True))
  assert np.bincount(source[source >= 3]).argmin() < 3  # all five symbols occur
  sources = [copy_source(symbols=5, shortest=2, longest=6, batch_size=4, seed=s, eval_pairs=8) for s in (0, 1)]
  one, other = (each.batch(0, split="train")["source"] for each in sources)
  assert not np.array_equal(one, other)
  np.testing.assert_array_equal(*(each.batch(0, split="heldout")["source"] for each in sources))
  with pytest.raises(UserError, match="shortest"):
    copy_source(symbols=5, shortest=7, longest=6, batch_size=4, seed=0, eval_pairs=8)


def test_symbols_some_places_back():
  tokens = jnp.arange(40).reshape(2, 20)
  wanted = np.asarray(answers(tokens))
  assert wanted.shape == (2, 10, 4)
  for t in range(10):
    np.testing.assert_array_equal(wanted[:, t], np.asarray(tokens)[:, [t + 10 - back for back in BACK]])
  with pytest.raises(UserError, match="data.length"):
    places_back_source(symbols=8, length=10, batch_size=4, seed=0, eval_strings=8)

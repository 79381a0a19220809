"""Pairs of sentences, tokenised once with one vocabulary for both languages, and their batches.

  name                     pairs
  libreoffice_help         paragraphs of LibreOffice's help, by id (`ilya_jax.data.help_pages`): en-US, fr; held out by page
  invented                 sentences of an invented language, translated by rule (`ilya_jax.data.invented_language`)
  tfds:NAME[/CONFIG]       a set that TensorFlow Datasets has prepared in a random-access format, as tfds:wmt14_translate/de-en;
                           its splits other than "train" are held out

Tokens: PAD 0, BEGIN 1, END 2, then byte pairs learned from the training sentences of both languages (Vaswani et al. 2017, section
5.1). A pair with more than `longest` tokens on either side, END not counted, is left out. Training pairs are distinct, and no
held-out pair has a source or a target that stands in training, nor stands there twice.

A batch is {"source": int32 [B, S], "target": int32 [B, T + 1]}: a source ends with END, a target begins with BEGIN and ends with
END, then PAD; S = T = longest + 1. Letters: n pairs.
"""

import functools
import hashlib
import importlib.metadata
import json
import shutil
import tempfile
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from ilya_jax.cache import cache_folder
from ilya_jax.data import help_pages, invented_language
from ilya_jax.data import tokenizer as tokenizers
from ilya_jax.data.corpora import is_held_out
from ilya_jax.data.epochs import order_of_epochs, permutation
from ilya_jax.data.prepared import open_builder, open_split
from ilya_jax.errors import UserError
from ilya_jax.task import Source

Array = np.ndarray
PAD, BEGIN, END = 0, 1, 2
SPECIALS = 3  # tokens before those of the tokenizer
NAMES = (help_pages.NAME, "invented", "tfds:<builder>[/<config>]")
_FORMAT = 1  # of the cache
_INVENTED = (20_000, 1_000)  # pairs for training, held out
_EVALUATED = 50  # pairs of a held-out batch
_SUBSET_SEED = 2017
_GROUP = 10_000  # sentences tokenised at a time

Texts = Sequence[tuple[str, str]]


class PairTexts(NamedTuple):
  """Sentences before tokenisation. identity: JSON values that change with the content; read() -> split -> pairs."""

  identity: Any
  read: Callable[[], dict[str, list[tuple[str, str]]]]


class Pairs(NamedTuple):
  """Tokens of pairs, padded: source unsigned [n, S], target unsigned [n, T + 1]."""

  source: Array
  target: Array

  def take(self, chosen: Array | slice) -> dict[str, Array]:
    """These pairs as a batch."""
    return {name: np.asarray(leaf[chosen], np.int32) for name, leaf in self._asdict().items()}


class PairCorpus(NamedTuple):
  """parts: split -> pairs, "train" among them; tokenizer; facts: counts, and the fingerprint of it all."""

  parts: Mapping[str, Pairs]
  tokenizer: tokenizers.Tokenizer
  facts: Mapping[str, Any]

  @property
  def vocab_size(self) -> int:
    """Tokens, the specials among them."""
    return SPECIALS + self.tokenizer.vocab_size

  def text(self, tokens: Any) -> str:
    """The text of tokens up to the first END, without specials."""
    row = np.asarray(tokens).tolist()
    row = row[: row.index(END)] if END in row else row
    kept = [token - SPECIALS for token in row if token >= SPECIALS]
    return self.tokenizer.decode(kept).decode("utf-8", "replace")

  def encoded(self, text: str, *, longest: int) -> Array:
    """int32 [longest + 1]: a source sentence. Raises UserError where it has no tokens or more than `longest`."""
    tokens = self.tokenizer.encode(text)
    if not 0 < len(tokens) <= longest:
      raise UserError(f"a sentence of {len(tokens)} tokens", f"1 to {longest} of them", "--prompt")
    return _padded([tokens], width=longest + 1, begins=False, dtype=np.dtype(np.int32))[0]


def load_pairs(data: Any) -> PairCorpus:
  """The pairs that a config's `data` section names, tokenised at first use and cached in `cache_folder()`.

  data: has the fields `name`, `path` (the data_dir of a TFDS set), `languages` (source, target), `vocab_size` (specials among
  them), `longest`, `heldout_fraction` (of the help's pages).
  Raises UserError on an unknown name, and where the pairs are not there.
  """
  return _load(data.name, data.path, tuple(data.languages), data.vocab_size, data.longest, data.heldout_fraction)


@functools.lru_cache(maxsize=4)
def _load(
  name: str, path: str, languages: tuple[str, str], vocab_size: int, longest: int, fraction: float
) -> PairCorpus:
  if longest < 1:
    raise UserError(f"data.longest = {longest}", "at least 1", "--config.data.longest")
  texts = open_texts(name, path=path, languages=languages, heldout_fraction=fraction)
  version = importlib.metadata.version("tokenizers")
  key = json.dumps([_FORMAT, name, vocab_size, longest, version, texts.identity])
  folder = cache_folder() / "translation" / hashlib.sha256(key.encode()).hexdigest()[:24]
  if not (folder / "facts.json").is_file():
    _build(folder, texts.read(), vocab_size=vocab_size, longest=longest)
  facts = json.loads((folder / "facts.json").read_text())
  parts = {
    split: Pairs(*(np.load(folder / f"{split}.{side}.npy", mmap_mode="r") for side in ("source", "target")))
    for split in facts["pairs"]
  }
  return PairCorpus(parts, tokenizers.from_json((folder / "tokenizer.json").read_text()), facts)


def open_texts(name: str, *, path: str, languages: tuple[str, str], heldout_fraction: float) -> PairTexts:
  """Finds pairs by name, without reading them. Raises UserError on an unknown name, and where they are not there."""
  if name == "invented":
    return PairTexts(["invented", _INVENTED], _invented)
  if name == help_pages.NAME:
    if not 0 < heldout_fraction < 1:
      got = f"data.heldout_fraction = {heldout_fraction}"
      raise UserError(got, "a number between 0 and 1", "--config.data.heldout_fraction")
    identity = [languages, heldout_fraction, *(help_pages.page_files(language) for language in languages)]
    return PairTexts(identity, lambda: _help(languages, heldout_fraction))
  if name.startswith("tfds:"):
    builder, splits = open_builder(name.removeprefix("tfds:"), path)
    return PairTexts([builder.info.full_name, languages], lambda: _tfds(name, builder, splits, languages))
  raise UserError(f"data.name = {name!r}", f"copy, or one of {', '.join(NAMES)}", "--config.data.name")


def _invented() -> dict[str, list[tuple[str, str]]]:
  words = invented_language.lexicon()
  return {
    split: invented_language.sentences(np.random.default_rng([1914, stream]), words, count=count)
    for stream, (split, count) in enumerate(zip(("train", "heldout"), _INVENTED, strict=True))
  }


def _help(languages: tuple[str, str], heldout_fraction: float) -> dict[str, list[tuple[str, str]]]:
  made: dict[str, list[tuple[str, str]]] = {"train": [], "heldout": []}
  for page, text, translation in help_pages.pairs(*languages):
    made["heldout" if is_held_out(page, heldout_fraction) else "train"].append((text, translation))
  return made


def _tfds(name: str, builder: Any, splits: set[str], languages: tuple[str, str]) -> dict[str, list[tuple[str, str]]]:
  def text(example: Mapping[str, Any], language: str) -> str:
    value = example[language]
    return value if isinstance(value, str) else bytes(value).decode("utf-8", "replace")

  if "train" not in splits or len(splits) < 2:
    raise UserError(f"tfds set {name!r} with splits {sorted(splits)}", "train and another", "--config.data.name")
  made = {}
  for split in sorted(splits):
    rows = open_split(name, builder, split)
    made[split] = [(text(rows[k], languages[0]), text(rows[k], languages[1])) for k in range(len(rows))]
  return made


def distinct(texts: Mapping[str, Texts]) -> dict[str, list[tuple[str, str]]]:
  """Each pair once; held-out pairs neither side of which stands in training."""
  kept = {"train": list(dict.fromkeys(texts["train"]))}
  seen = {text for pair in kept["train"] for text in pair}
  for split in texts:
    if split != "train":
      kept[split] = [pair for pair in dict.fromkeys(texts[split]) if not seen.intersection(pair)]
  return kept


def _build(folder: Path, texts: Mapping[str, Texts], *, vocab_size: int, longest: int) -> None:
  """Tokenises the pairs into a new folder that then takes its place in one rename."""
  kept = distinct(texts)
  sentences = (text.encode() for pair in kept["train"] for text in pair)
  tokenizer = tokenizers.train_bpe(sentences, vocab_size=vocab_size - SPECIALS)
  folder.parent.mkdir(parents=True, exist_ok=True)
  unfinished = Path(tempfile.mkdtemp(prefix=".", dir=folder.parent))
  digest = hashlib.sha256(tokenizer.to_json().encode())
  facts: dict[str, Any] = {"pairs": {}, "too_long": {}, "repeated_or_shared": {}, "mean_target_tokens": {}}
  try:
    for split, own in kept.items():
      pairs, too_long, mean = _tokenised(own, tokenizer, longest=longest)
      if not len(pairs.source):
        got = f"no {split} pairs of at most {longest} tokens"
        raise UserError(got, "one or more", "--config.data.longest or --config.data.heldout_fraction")
      for side, leaf in pairs._asdict().items():
        np.save(unfinished / f"{split}.{side}.npy", leaf)
        digest.update(f"{split} {side} {leaf.shape}".encode() + leaf.astype("<u4").tobytes())
      facts["pairs"][split], facts["too_long"][split] = len(pairs.source), too_long
      facts["repeated_or_shared"][split] = len(texts[split]) - len(own)
      facts["mean_target_tokens"][split] = mean
    (unfinished / "tokenizer.json").write_text(tokenizer.to_json())
    (unfinished / "facts.json").write_text(json.dumps({**facts, "fingerprint": digest.hexdigest()}))
    try:
      unfinished.rename(folder)
    except OSError:  # another process was faster
      if not (folder / "facts.json").is_file():
        raise
  finally:
    shutil.rmtree(unfinished, ignore_errors=True)


def _tokenised(texts: Texts, tokenizer: tokenizers.Tokenizer, *, longest: int) -> tuple[Pairs, int, float]:
  """The pairs that are short enough, how many were not, and the mean of their target tokens (END counted)."""
  dtype = tokenizers.token_dtype(SPECIALS + tokenizer.vocab_size)
  chunks: list[Pairs] = [Pairs(np.zeros((0, longest + 1), dtype), np.zeros((0, longest + 2), dtype))]
  left_out = 0
  for start in range(0, len(texts), _GROUP):
    group = texts[start : start + _GROUP]
    sources, targets = (tokenizer.encode_documents([pair[side].encode() for pair in group]) for side in (0, 1))
    fits = [
      k for k in range(len(group)) if 0 < len(sources[k]) <= longest and 0 < len(targets[k]) <= longest
    ]  # fmt: skip
    left_out += len(group) - len(fits)
    chunks.append(
      Pairs(
        _padded([sources[k] for k in fits], width=longest + 1, begins=False, dtype=dtype),
        _padded([targets[k] for k in fits], width=longest + 2, begins=True, dtype=dtype),
      )
    )
  pairs = Pairs(*(np.concatenate(leaves) for leaves in zip(*chunks, strict=True)))
  return pairs, left_out, float((pairs.target[:, 1:] != PAD).sum() / max(len(pairs.target), 1))


def _padded(rows: Sequence[Array], *, width: int, begins: bool, dtype: np.dtype) -> Array:
  """[n, width]: BEGIN where asked for, the tokens of each row, END, then PAD."""
  made = np.full((len(rows), width), PAD, dtype)
  for k, row in enumerate(rows):
    first = int(begins)
    made[k, :first] = BEGIN
    made[k, first : first + len(row)] = row.astype(dtype) + dtype.type(SPECIALS)
    made[k, first + len(row)] = END
  return made


def pair_source(
  corpus: PairCorpus, *, name: str, batch_size: int, seed: int, train_pairs: int = 0, eval_pairs: int = 0
) -> Source:
  """Batches of pairs: training epoch by epoch in orders that depend on `seed`; every other part is a held-out set.

  train_pairs: the first so many of a fixed order of the training pairs, a smaller set part of a larger one; 0: all. eval_pairs:
  at most so many of each held-out set, evenly spaced; 0: all. Raises UserError on a batch or a number of pairs that is not there.
  """
  train = corpus.parts["train"]
  there = len(train.source)
  count = train_pairs or there
  if not batch_size <= count <= there:
    got = f"{count} training pairs (data.train_pairs), batches of {batch_size}"
    raise UserError(got, f"{there} pairs or fewer, and a batch of them", "--config.data.train_pairs")
  subset = np.arange(there) if count == there else permutation(there, _SUBSET_SEED, 0)[:count]
  chosen = {}
  for split, part in corpus.parts.items():
    if split != "train":
      size = min(eval_pairs or len(part.source), len(part.source))
      chosen[split] = np.arange(size) * len(part.source) // size

  def batch(step: int, *, split: str = "train", rows: slice = slice(None)) -> dict[str, Array]:
    if split == "train":
      positions = (np.int64(step) * batch_size + np.arange(batch_size, dtype=np.int64))[rows]
      return train.take(subset[order_of_epochs(positions, count=count, seed=seed)])
    own = chosen[split][int(step) * _EVALUATED : (int(step) + 1) * _EVALUATED]
    return corpus.parts[split].take(own[rows])

  digest = hashlib.sha256(f"{corpus.facts['fingerprint']} {count} {eval_pairs}".encode())
  info = {
    "name": name,
    "fingerprint": digest.hexdigest(),
    "vocab_size": corpus.vocab_size,
    "d_unique_total": count,
    "source_positions": train.source.shape[1],
    "target_positions": train.target.shape[1] - 1,
    **{field: dict(corpus.facts[field]) for field in ("pairs", "too_long", "repeated_or_shared", "mean_target_tokens")},
  }
  return Source(batch, {split: -(-len(own) // _EVALUATED) for split, own in chosen.items()}, info)

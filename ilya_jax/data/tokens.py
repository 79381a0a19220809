"""Token corpora: split, freed of duplicates, tokenised once into memory maps, sampled as a function of (seed, step).

The training stream and the held-out stream are documents in the order of their names, a separator token (NUL, one byte)
after each. No held-out document, and no held-out paragraph of 100 bytes or more, occurs in a training document, white
space aside: such documents and paragraphs are removed from the held-out stream and counted.
"""

import fcntl
import functools
import hashlib
import importlib.metadata
import json
import os
import re
import shutil
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any, BinaryIO, NamedTuple

import numpy as np

from ilya_jax.cache import cache_folder
from ilya_jax.data import tokenizer as tokenizers
from ilya_jax.data.corpora import Document, Documents, open_documents
from ilya_jax.errors import UserError
from ilya_jax.task import Source

FORMAT = 1  # of the cache; a change of anything that alters the tokens raises it
SHORTEST_PARAGRAPH = 100  # bytes; a shorter paragraph may occur on both sides of the split
_BLANK_LINE = re.compile(rb"(\n[ \t\r\f\v]*\n)")
_ENCODE_BYTES = 1 << 22  # documents are handed to the tokenizer in groups of 4 MiB


class Corpus(NamedTuple):
  """A tokenised corpus. Counts of tokens and bytes include the separator after each document (one byte).

  train, heldout: token streams, 1-D memory maps of uint8, uint16 or uint32.
  train_documents, heldout_documents: how many documents each stream holds.
  heldout_document_ends: int64 [heldout_documents], where each document ends in `heldout`, its separator included.
  train_bytes, heldout_bytes: the streams' lengths in bytes, equal to `token_bytes[stream].sum()`.
  vocab_size: number of tokens V.
  token_bytes: int32 [V], length of each token in bytes.
  fingerprint: SHA-256 over the tokenizer and both streams.
  duplicates_removed: `documents` and `paragraphs` of the held-out side that also occur in training,
    `train_documents` and `heldout_documents` that repeat one of their own side.
  tokenizer: encodes and decodes.
  """

  name: str
  train: np.ndarray
  heldout: np.ndarray
  train_documents: int
  heldout_documents: int
  heldout_document_ends: np.ndarray
  train_bytes: int
  heldout_bytes: int
  vocab_size: int
  token_bytes: np.ndarray
  fingerprint: str
  duplicates_removed: dict[str, int]
  tokenizer: tokenizers.Tokenizer


def load_corpus(data: Any, *, report: Callable[[str], None] | None = None) -> Corpus:
  """The corpus that a config's `data` section names, tokenised at first use and cached in `cache_folder()`.

  Args:
    data: has the fields `name`, `path`, `tokenizer` ("bytes" or "bpe"), `vocab_size` (bpe only), `heldout_fraction`.
    report: receives one line when the corpus has to be tokenised first, which takes from seconds to minutes.

  Raises:
    UserError: unknown name or tokenizer, a corpus that is absent or too small, a cache that cannot be written.
  """
  if data.tokenizer not in ("bytes", "bpe"):
    raise UserError(f"data.tokenizer = {data.tokenizer!r}", "'bytes' or 'bpe'", "change --config.data.tokenizer")
  documents = open_documents(data.name, path=data.path, heldout_fraction=data.heldout_fraction)
  vocab_size = data.vocab_size if data.tokenizer == "bpe" else None
  version = importlib.metadata.version("tokenizers") if data.tokenizer == "bpe" else None
  key = json.dumps([FORMAT, data.name, data.tokenizer, vocab_size, version, documents.identity])
  folder = cache_folder() / "corpora" / hashlib.sha256(key.encode()).hexdigest()[:24]
  corpus = _open_entry(folder)
  if corpus is not None:
    return corpus
  try:
    folder.parent.mkdir(parents=True, exist_ok=True)
    with open(folder.with_suffix(".lock"), "ab") as lock:
      fcntl.flock(lock, fcntl.LOCK_EX)  # released when the file is closed, or by the kernel when the process dies
      corpus = _open_entry(folder)  # another process may have been faster
      if corpus is None:
        if report is not None:
          report(f"tokenising {data.name} as {data.tokenizer} (once, then cached in {folder})")
        _build_entry(folder, name=data.name, documents=documents, vocab_size=vocab_size)
        corpus = _open_entry(folder)
  except OSError as error:
    raise UserError(
      f"the cache folder {cache_folder()} cannot be written ({error.strerror})",
      "a folder with write permission and free space",
      "set the environment variable ILYA_JAX_CACHE to one",
    ) from error
  if corpus is None:
    raise UserError(
      f"the cache entry {folder} changed while it was read", "no other writer", "delete it and start again"
    )
  return corpus


def describe(corpus: Corpus) -> str:
  """One line for the progress log."""
  removed = corpus.duplicates_removed
  return (
    f"{corpus.name}: {corpus.train.size:,} training tokens ({corpus.train_bytes / 1e6:.2f} MB, "
    f"{corpus.train_documents:,} documents), {corpus.heldout.size:,} held out ({corpus.heldout_bytes / 1e6:.2f} MB, "
    f"{corpus.heldout_documents:,} documents), vocabulary {corpus.vocab_size}; removed from held-out as duplicates of "
    f"training: {removed['documents']} documents, {removed['paragraphs']} paragraphs; "
    f"sha256 {corpus.fingerprint[:12]}"
  )


def unique_tokens(tokens_seen: int, corpus: Corpus) -> int:
  """Different training tokens among the first `tokens_seen` of a run: all of them within the first epoch (D_unique)."""
  return min(int(tokens_seen), int(corpus.train.size))


def token_source(corpus: Corpus, *, batch_size: int, context: int, seed: int, eval_tokens: int) -> Source:
  """Batches `{"tokens": [B, T+1]}` of a corpus: inputs are `tokens[:, :-1]`, targets `tokens[:, 1:]`.

  Training: epoch e cuts the stream into W = (length − T) // T windows, neighbours sharing only the token that is the
  target of one and the first input of the next, so that each token is predicted at most once an epoch; where the first
  window starts (below T) and the order of the windows are drawn from Philox(seed, e). Step s takes the examples sB …
  sB+B−1 of the endless sequence of epochs: no window is repeated within an epoch, the order of examples does not
  depend on the batch size, and resuming needs nothing but the step.

  Held-out: min(eval_tokens, available) // T windows at equal distances over the whole held-out stream. They depend on
  the corpus, T and eval_tokens alone, not on batch size or seed. Batches hold neighbouring windows, so that the
  spread over batches contains the spread over documents.

  Args:
    corpus: from `load_corpus`.
    batch_size: training batch B.
    context: T, in tokens.
    seed: of the order of the training windows.
    eval_tokens: size of the held-out set, in predicted tokens.

  Returns:
    Source with the held-out set "heldout"; tokens are of the corpus's unsigned type.

  Raises:
    UserError: a corpus with fewer than B training windows, or without a held-out window.
  """
  _check_sizes(corpus, batch_size=batch_size, context=context, eval_tokens=eval_tokens)
  train = np.lib.stride_tricks.sliding_window_view(np.asarray(corpus.train), context + 1)
  heldout = np.lib.stride_tricks.sliding_window_view(np.asarray(corpus.heldout), context + 1)
  windows = (corpus.train.size - context) // context
  heldout_starts = eval_window_starts(corpus.heldout.size, context=context, eval_tokens=eval_tokens)

  @functools.lru_cache(maxsize=2)  # a batch may straddle two epochs
  def epoch_starts(epoch: int) -> np.ndarray:
    rng = np.random.Generator(np.random.Philox(key=np.asarray([seed % 2**64, epoch], np.uint64)))
    offset = rng.integers(context)
    return offset + context * rng.permutation(windows)

  def batch(step: int, *, split: str = "train", rows: slice = slice(None)) -> dict[str, np.ndarray]:
    if split == "heldout":
      return {"tokens": heldout[heldout_starts[step][rows]]}
    if split != "train":
      raise ValueError(f"split {split!r}; expected 'train' or 'heldout'")
    epoch, position = divmod(int(step) * batch_size, windows)
    starts = epoch_starts(epoch)[position : position + batch_size]
    if starts.size < batch_size:
      starts = np.concatenate([starts, epoch_starts(epoch + 1)[: batch_size - starts.size]])
    return {"tokens": train[starts[rows]]}

  info = {
    "name": corpus.name,
    "fingerprint": corpus.fingerprint,
    "vocab_size": corpus.vocab_size,
    "bytes_per_token": corpus.train_bytes / corpus.train.size,
    "d_unique_total": int(corpus.train.size),
    "train_documents": corpus.train_documents,
    "heldout_documents": corpus.heldout_documents,
    "heldout_tokens": int(heldout_starts.size * context),
    "duplicates_removed": dict(corpus.duplicates_removed),
  }
  return Source(batch=batch, eval_batches={"heldout": len(heldout_starts)}, info=info)


def eval_window_starts(length: int, *, context: int, eval_tokens: int) -> np.ndarray:
  """Starts of the held-out windows, int [batches, windows a batch], in a stream of `length` tokens.

  Windows do not overlap in what they predict; they stand at equal distances from the stream's first to its last token.
  """
  batches, width = eval_batches(min(eval_tokens, length - 1), context=context)
  windows = batches * width
  return (np.arange(windows) * (length - 1 - context) // max(windows - 1, 1)).reshape(batches, width)


def eval_batches(tokens: int, *, context: int) -> tuple[int, int]:
  """How a held-out set of at most `tokens` predicted tokens (one window or more) is cut: batches, windows a batch.

  A batch has a power of two of windows: about 8192 tokens, and at least 8 windows where there are so many. It depends
  on the two arguments alone, so that models with different training batches are evaluated on the same set.
  """
  windows = tokens // context
  width = 1 << (max(8192 // context, 8).bit_length() - 1)
  while width > windows or (width > 8 and windows % width > windows // 16):  # at most 1/16 is left over
    width //= 2
  return windows // width, width


def _check_sizes(corpus: Corpus, *, batch_size: int, context: int, eval_tokens: int) -> None:
  for field, value in (("batch_size", batch_size), ("data.context", context)):
    if value < 1:
      raise UserError(f"{field} = {value}", "at least 1", f"change --config.{field}")
  windows = (corpus.train.size - context) // context
  if windows < batch_size:
    raise UserError(
      f"{corpus.train.size} training tokens in {corpus.name}, {max(windows, 0)} windows of {context}",
      f"at least one batch of {batch_size}",
      "use a larger corpus, or lower --config.batch_size or --config.data.context",
    )
  if min(eval_tokens, corpus.heldout.size - 1) < context:
    raise UserError(
      f"{corpus.heldout.size} held-out tokens in {corpus.name} and eval_tokens = {eval_tokens}",
      f"at least one window of {context} tokens and its first input",
      "raise --config.data.heldout_fraction or --config.eval.tokens, or lower --config.data.context",
    )


def _open_entry(folder: Path) -> Corpus | None:
  """The corpus in a cache entry, or None where the entry is absent or was damaged; reads only its small files."""
  try:
    facts = json.loads((folder / "facts.json").read_text())
    for file, recorded in facts["files"].items():
      if _size_and_time(folder / file) != recorded:
        return None
    counts = facts["counts"]
    token_bytes = np.load(folder / "token_bytes.npy")
    dtype = tokenizers.token_dtype(len(token_bytes))
    return Corpus(
      name=facts["name"],
      train=np.memmap(folder / "train.bin", dtype, mode="r"),
      heldout=np.memmap(folder / "heldout.bin", dtype, mode="r"),
      train_documents=counts["train_documents"],
      heldout_documents=counts["heldout_documents"],
      heldout_document_ends=np.load(folder / "heldout_document_ends.npy"),
      train_bytes=counts["train_bytes"],
      heldout_bytes=counts["heldout_bytes"],
      vocab_size=len(token_bytes),
      token_bytes=token_bytes,
      fingerprint=facts["fingerprint"],
      duplicates_removed=facts["duplicates_removed"],
      tokenizer=tokenizers.from_json((folder / "tokenizer.json").read_text()),
    )
  except (OSError, ValueError, KeyError, TypeError, AttributeError, EOFError):
    return None


def _size_and_time(file: Path) -> list[int]:
  facts = file.stat()
  return [facts.st_size, facts.st_mtime_ns]


def _build_entry(folder: Path, *, name: str, documents: Documents, vocab_size: int | None) -> None:
  """Tokenises a corpus into a new folder that then takes its place in one rename; the caller holds the lock."""
  unfinished = folder.with_suffix(".unfinished")
  shutil.rmtree(unfinished, ignore_errors=True)  # of a process that was killed
  heldout, removed = held_out_texts(documents)
  tokenizer: tokenizers.Tokenizer = (
    tokenizers.ByteTokenizer()
    if vocab_size is None
    else tokenizers.train_bpe(distinct(documents.train()), vocab_size=vocab_size)
  )
  unfinished.mkdir()
  try:
    digest = hashlib.sha256(tokenizer.to_json().encode())
    train_ends, train_bytes = _write_stream(unfinished / "train.bin", distinct(documents.train()), tokenizer, digest)
    digest.update(b"held-out")
    ends, heldout_bytes = _write_stream(unfinished / "heldout.bin", heldout, tokenizer, digest)
    _check_not_empty(name, train_documents=len(train_ends), heldout_documents=len(ends))
    digest.update(np.asarray(ends, "<i8").tobytes())
    np.save(unfinished / "heldout_document_ends.npy", np.asarray(ends, np.int64))
    np.save(unfinished / "token_bytes.npy", tokenizer.token_bytes)
    (unfinished / "tokenizer.json").write_text(tokenizer.to_json())
    facts = {
      "name": name,
      "files": {file.name: _size_and_time(file) for file in sorted(unfinished.iterdir())},
      "counts": {
        "train_documents": len(train_ends),
        "heldout_documents": len(ends),
        "train_bytes": train_bytes,
        "heldout_bytes": heldout_bytes,
      },
      "fingerprint": digest.hexdigest(),
      "duplicates_removed": removed,
    }
    (unfinished / "facts.json").write_text(json.dumps(facts, indent=1))
    shutil.rmtree(folder, ignore_errors=True)  # a damaged entry; who has it open keeps reading the deleted files
    unfinished.rename(folder)
  finally:
    shutil.rmtree(unfinished, ignore_errors=True)


def _check_not_empty(name: str, *, train_documents: int, heldout_documents: int) -> None:
  if not train_documents or not heldout_documents:
    raise UserError(
      f"{name} with {train_documents} training and {heldout_documents} held-out documents, duplicates removed",
      "at least one of each",
      "use a larger corpus or raise --config.data.heldout_fraction",
    )


def _write_stream(
  file: Path, texts: Iterable[bytes], tokenizer: tokenizers.Tokenizer, digest: Any
) -> tuple[list[int], int]:
  """Writes documents with their separators, updating the digest; returns where each ends (tokens) and the bytes."""
  dtype = tokenizers.token_dtype(tokenizer.vocab_size)
  separator = np.asarray([tokenizer.separator], dtype)
  ends: list[int] = []
  tokens = length = 0
  with file.open("wb") as stream:
    for group in tokenizers.batched(texts, size=_ENCODE_BYTES):
      for text, encoded in zip(group, tokenizer.encode_documents(group), strict=True):
        for part in (encoded, separator):
          content = part.astype(dtype, copy=False).tobytes()
          stream.write(content)
          digest.update(content)
        tokens += encoded.size + 1
        length += len(text) + len(tokenizers.SEPARATOR)
        ends.append(tokens)
    _flush_to_disk(stream)
  return ends, length


def _flush_to_disk(stream: BinaryIO) -> None:
  stream.flush()
  os.fsync(stream.fileno())


def distinct(documents: Iterable[Document]) -> Iterator[bytes]:
  """Contents of the documents, each once (white space aside), empty ones left out."""
  seen = set()
  for _, text in documents:
    digest = _digest(text)
    if digest not in seen and text.strip():
      seen.add(digest)
      yield text


def held_out_texts(documents: Documents) -> tuple[list[bytes], dict[str, int]]:
  """Held-out texts without what also occurs in training, and the counts of `Corpus.duplicates_removed`.

  Memory: the held-out texts and 16 bytes of digest a training document.
  """
  candidates = [text for _, text in documents.heldout() if text.strip()]
  heldout_paragraphs = {_digest(part) for text in candidates for part in _long_paragraphs(text)}
  train_texts: set[bytes] = set()
  shared_paragraphs: set[bytes] = set()
  train_documents = 0
  for _, text in documents.train():
    if text.strip():
      train_documents += 1
      train_texts.add(_digest(text))
      shared_paragraphs.update(heldout_paragraphs.intersection(map(_digest, _long_paragraphs(text))))
  removed = {"documents": 0, "paragraphs": 0, "train_documents": train_documents - len(train_texts)}
  kept: dict[bytes, bytes] = {}
  repeats = 0
  for text in candidates:
    if _digest(text) in train_texts:
      removed["documents"] += 1
      continue
    rest, paragraphs = _without_paragraphs(text, shared_paragraphs)
    removed["paragraphs"] += paragraphs
    digest = _digest(rest)
    if digest in train_texts:  # what is left of it is a training document
      removed["documents"] += 1
    elif rest.strip():
      repeats += digest in kept
      kept.setdefault(digest, rest)
  removed["heldout_documents"] = repeats
  return list(kept.values()), removed


def _long_paragraphs(text: bytes) -> Iterator[bytes]:
  """The paragraphs (blocks between blank lines) that are long enough, a run of white space counted as one."""
  for part in _BLANK_LINE.split(text)[::2]:
    if len(part) >= SHORTEST_PARAGRAPH and len(b" ".join(part.split())) >= SHORTEST_PARAGRAPH:
      yield part


def _without_paragraphs(text: bytes, shared: set[bytes]) -> tuple[bytes, int]:
  """The text without the paragraphs in `shared` and the blank line after each, and how many they were."""
  parts = [*_BLANK_LINE.split(text), b""]  # paragraph, blank line, paragraph, …
  pairs = list(zip(parts[::2], parts[1::2], strict=True))
  doomed = [len(part) >= SHORTEST_PARAGRAPH and _digest(part) in shared for part, _ in pairs]
  return b"".join(a + b for (a, b), gone in zip(pairs, doomed, strict=True) if not gone), sum(doomed)


def _digest(text: bytes) -> bytes:
  """Identifies a text, white space aside."""
  return hashlib.blake2b(b" ".join(text.split()), digest_size=16).digest()

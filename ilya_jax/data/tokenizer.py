"""Tokenizers whose tokens are strings of bytes: the bytes themselves, or byte pair encoding trained on the corpus.

Both are lossless for any bytes, valid UTF-8 or not, so that `token_bytes[tokens].sum()` is exactly the number of bytes
that were encoded, and bits per byte compare across tokenizers. Both end a document with the same one-byte token, NUL.
"""

from collections.abc import Iterable, Iterator, Sequence
from functools import cached_property
from typing import Any, Protocol

import numpy as np

from ilya_jax.errors import UserError

SEPARATOR = b"\0"  # one token of one byte after every document, and counted as such
SMALLEST_BPE_VOCABULARY = 257  # the 256 bytes and one merge

# Text reaches the library as Latin-1: one character a byte, so that a token's length in characters is its length in
# bytes. The pattern is GPT-2's (a word with its leading space, a run of white space without its last), on bytes: every
# byte ≥ 0x80 counts as a letter, numbers are cut after 3 digits (as GPT-4's), and no piece, hence no token, is longer
# than 48 bytes, which keeps files without spaces from costing quadratic time.
_PIECES = (
  r"\x00| ?[A-Za-z\x80-\xff]{1,48}| ?[0-9]{1,3}| ?[^\x00\t-\r A-Za-z0-9\x80-\xff]{1,48}"
  r"|[\t-\r ]{1,48}(?![^\t-\r ])|[\t-\r ]{1,48}"
)


class Tokenizer(Protocol):
  """What a corpus asks of its tokenizer."""

  @property
  def vocab_size(self) -> int:
    """Number of tokens V."""

  @property
  def token_bytes(self) -> np.ndarray:
    """Length of each token in bytes, int32 [V]."""

  @property
  def separator(self) -> int:
    """The token of SEPARATOR."""

  def encode(self, text: str | bytes) -> np.ndarray:
    """Tokens (1-D, the smallest unsigned type that holds the vocabulary) of a text; a str is encoded as UTF-8."""

  def encode_documents(self, documents: Sequence[bytes]) -> list[np.ndarray]:
    """Tokens of each document, without the separator."""

  def decode(self, tokens: Any) -> bytes:
    """The bytes of a sequence of tokens."""

  def to_json(self) -> str:
    """All that defines the tokenizer, as text; `from_json` reads it."""


class ByteTokenizer:
  """Tokens are bytes: 256 of them."""

  vocab_size = 256
  separator = SEPARATOR[0]

  @cached_property
  def token_bytes(self) -> np.ndarray:
    return np.ones(256, np.int32)

  def encode(self, text: str | bytes) -> np.ndarray:
    return np.frombuffer(_as_bytes(text), np.uint8)

  def encode_documents(self, documents: Sequence[bytes]) -> list[np.ndarray]:
    return [self.encode(document) for document in documents]

  def decode(self, tokens: Any) -> bytes:
    return np.asarray(tokens).astype(np.uint8).tobytes()

  def to_json(self) -> str:
    return '"bytes"'


class BpeTokenizer:
  """Byte pair encoding (Sennrich et al. 2016) over bytes, by the `tokenizers` library.

  Args:
    definition: the library's JSON, as `train_bpe` or `to_json` gives it; parsed at first use.
  """

  def __init__(self, definition: str):
    self._definition = definition

  @cached_property
  def _engine(self) -> Any:
    from tokenizers import Tokenizer as Engine

    return Engine.from_str(self._definition)

  @cached_property
  def _tokens(self) -> list[bytes]:
    """Token id → its bytes."""
    return [self._engine.id_to_token(index).encode("latin-1") for index in range(self.vocab_size)]

  @cached_property
  def vocab_size(self) -> int:
    return self._engine.get_vocab_size()

  @cached_property
  def token_bytes(self) -> np.ndarray:
    return np.asarray([len(token) for token in self._tokens], np.int32)

  @cached_property
  def separator(self) -> int:
    return self._engine.token_to_id(SEPARATOR.decode("latin-1"))

  def encode(self, text: str | bytes) -> np.ndarray:
    return self.encode_documents([_as_bytes(text)])[0]

  def encode_documents(self, documents: Sequence[bytes]) -> list[np.ndarray]:
    encodings = self._engine.encode_batch_fast([document.decode("latin-1") for document in documents])
    return [np.asarray(encoding.ids, token_dtype(self.vocab_size)) for encoding in encodings]

  def decode(self, tokens: Any) -> bytes:
    return b"".join(self._tokens[token] for token in np.asarray(tokens).ravel().tolist())

  def to_json(self) -> str:
    return self._definition


def train_bpe(documents: Iterable[bytes], *, vocab_size: int) -> BpeTokenizer:
  """Learns the merges of byte pair encoding; the same documents always give the same tokenizer.

  Args:
    documents: training documents, read once.
    vocab_size: tokens wanted, the 256 bytes among them; a small corpus may offer fewer.

  Raises:
    UserError: a vocabulary with no room for a merge.
  """
  if vocab_size < SMALLEST_BPE_VOCABULARY:
    raise UserError(
      f"data.vocab_size = {vocab_size} with data.tokenizer = 'bpe'",
      f"at least {SMALLEST_BPE_VOCABULARY}",
      "set --config.data.vocab_size=4096, or --config.data.tokenizer=bytes",
    )
  from tokenizers import Regex, models, pre_tokenizers, trainers
  from tokenizers import Tokenizer as Engine

  engine = Engine(models.BPE())
  engine.pre_tokenizer = pre_tokenizers.Split(Regex(_PIECES), behavior="isolated")
  trainer = trainers.BpeTrainer(
    vocab_size=vocab_size,
    min_frequency=2,
    initial_alphabet=[chr(byte) for byte in range(256)],
    special_tokens=[],
    show_progress=False,
  )
  engine.train_from_iterator((document.decode("latin-1") for document in documents), trainer)
  return BpeTokenizer(engine.to_str())


def from_json(definition: str) -> Tokenizer:
  """The tokenizer that `to_json` described."""
  return ByteTokenizer() if definition == ByteTokenizer().to_json() else BpeTokenizer(definition)


def token_dtype(vocab_size: int) -> np.dtype:
  """The smallest of uint8, uint16 and uint32 that holds every token."""
  return np.min_scalar_type(vocab_size - 1)


def batched(documents: Iterable[bytes], *, size: int) -> Iterator[list[bytes]]:
  """Groups documents into lists of at least `size` bytes (the last list may hold less)."""
  group: list[bytes] = []
  held = 0
  for document in documents:
    group.append(document)
    held += len(document)
    if held >= size:
      yield group
      group, held = [], 0
  if group:
    yield group


def _as_bytes(text: str | bytes) -> bytes:
  return text.encode() if isinstance(text, str) else text

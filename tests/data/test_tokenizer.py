"""Tokenizers: lossless for any bytes, exact byte counts, the same merges in every process."""

import hashlib
import os
import subprocess
import sys

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from ilya_jax.data import tokenizer as tokenizers
from ilya_jax.errors import UserError

TEXTS = [
  b"def add(a, b):\n    return a + b\n\n\nprint(add(12345, 678))\n" * 3,
  "Der Bär läuft über die Brücke.\r\n\tÜber Nacht.\n".encode() * 3,
  "日本語のテキスト、日本語の言葉。\x00\x00".encode() * 3,
  bytes(range(256)) * 2,
]
BPE = tokenizers.train_bpe(TEXTS, vocab_size=400)
BYTES = tokenizers.ByteTokenizer()
# Pieces of the training texts between arbitrary bytes, so that merges apply and are cut short.
MIXED = st.lists(st.one_of(st.binary(max_size=6), st.sampled_from(TEXTS).map(lambda text: text[3:40])), max_size=8)


@pytest.mark.parametrize("tokenizer", [BYTES, BPE], ids=["bytes", "bpe"])
@settings(deadline=None, max_examples=200)
@given(parts=MIXED)
def test_any_bytes_survive_and_are_counted(tokenizer, parts):
  text = b"".join(parts)
  tokens = tokenizer.encode(text)
  assert tokenizer.decode(tokens) == text
  assert tokenizer.token_bytes[tokens].sum() == len(text)
  assert np.array_equal(tokenizer.encode_documents([b"x", text])[1], tokens)


@pytest.mark.parametrize("tokenizer", [BYTES, BPE], ids=["bytes", "bpe"])
@settings(deadline=None, max_examples=50)
@given(text=st.text(max_size=60))
def test_strings_are_encoded_as_utf8(tokenizer, text):
  assert tokenizer.decode(tokenizer.encode(text)) == text.encode()


@pytest.mark.parametrize("tokenizer", [BYTES, BPE], ids=["bytes", "bpe"])
def test_definition_round_trips(tokenizer):
  again = tokenizers.from_json(tokenizer.to_json())
  assert again.vocab_size == tokenizer.vocab_size
  assert again.separator == tokenizer.separator == 0
  np.testing.assert_array_equal(again.token_bytes, tokenizer.token_bytes)
  np.testing.assert_array_equal(again.encode(TEXTS[0]), tokenizer.encode(TEXTS[0]))


def test_bpe_holds_every_byte_and_merges_what_is_frequent():
  assert [BPE.decode([token]) for token in range(256)] == [bytes([byte]) for byte in range(256)]
  assert 256 < BPE.vocab_size <= 400
  assert len(BPE.encode(TEXTS[0])) < len(TEXTS[0]) / 2
  assert BPE.encode("").size == 0


def test_separator_is_never_part_of_another_token():
  assert [token for token in range(BPE.vocab_size) if b"\0" in BPE.decode([token])] == [BPE.separator]


def test_first_merges_are_those_of_the_definition():
  """Sennrich et al. 2016, algorithm 1: the most frequent neighbours are merged first, frequencies counted by hand."""
  tokenizer = tokenizers.train_bpe([b"low low low low low lower lower newest newest newest"], vocab_size=259)
  # "lo" and "ow" stand 7 times each; the tie goes to the smaller pair, then "low" (7) is before "we" (5).
  assert [tokenizer.decode([token]) for token in (256, 257)] == [b"lo", b"low"]


def test_long_runs_without_spaces_are_cut():
  tokenizer = tokenizers.train_bpe([b"a" * 5000, b" " * 5000, b"-" * 5000], vocab_size=1000)
  assert tokenizer.token_bytes.max() <= 49


def test_training_gives_the_same_merges_in_another_process():
  code = (
    "import hashlib, sys; from ilya_jax.data.tokenizer import train_bpe;"
    "print(hashlib.sha256(train_bpe([sys.stdin.buffer.read()], vocab_size=600).to_json().encode()).hexdigest())"
  )
  text = b"\n".join(TEXTS) + " ".join(str(number**3) for number in range(2000)).encode()
  expected = hashlib.sha256(tokenizers.train_bpe([text], vocab_size=600).to_json().encode()).hexdigest()
  environment = {**os.environ, "PYTHONHASHSEED": "7", "TOKENIZERS_PARALLELISM": "false"}
  done = subprocess.run([sys.executable, "-c", code], input=text, env=environment, capture_output=True, check=True)
  assert done.stdout.decode().strip() == expected


@pytest.mark.parametrize(("vocab_size", "dtype"), [(256, "u1"), (257, "u2"), (65536, "u2"), (65537, "u4")])
def test_dtype_is_the_smallest_that_holds_the_vocabulary(vocab_size, dtype):
  assert tokenizers.token_dtype(vocab_size) == np.dtype(dtype)


def test_vocabulary_without_room_for_a_merge_is_refused():
  with pytest.raises(UserError, match=r"vocab_size = 256.*at least 257"):
    tokenizers.train_bpe(TEXTS, vocab_size=256)


@given(documents=st.lists(st.binary(max_size=20)), size=st.integers(1, 40))
def test_groups_hold_all_documents_in_order(documents, size):
  groups = list(tokenizers.batched(documents, size=size))
  assert [document for group in groups for document in group] == documents
  assert all(sum(map(len, group)) >= size for group in groups[:-1])

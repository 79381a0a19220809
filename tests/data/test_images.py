"""Sources of pictures: epochs, splits, statistics, IDX files, TFDS sets in memory and streamed, and what is refused."""

import gzip
import io
import os
import subprocess
import zipfile
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from ilya_jax.data import images
from ilya_jax.data.epochs import order_of_epochs
from ilya_jax.data.image_sets import load_images
from ilya_jax.data.images import image_source, middle, scaled, standardise, whole_batches
from ilya_jax.errors import UserError

FETCH = Path(__file__).parents[2] / "scripts" / "fetch_data"


def write_idx(folder, name, array):
  header = bytes([0, 0, 8, array.ndim]) + np.asarray(array.shape, ">u4").tobytes()
  (folder / name).write_bytes(
    gzip.compress(header + array.tobytes()) if name.endswith("gz") else header + array.tobytes()
  )


@pytest.fixture
def idx(tmp_path):
  """A folder as MNIST's: 20 + 6 pictures of 4 x 3, two files packed and two not."""
  rng = np.random.default_rng(0)
  for split, count in (("train", 20), ("t10k", 6)):
    write_idx(tmp_path, f"{split}-images-idx3-ubyte.gz", rng.integers(256, size=(count, 4, 3), dtype=np.uint8))
    write_idx(tmp_path, f"{split}-labels-idx1-ubyte", (np.arange(count) % 7).astype(np.uint8))
  return tmp_path


def source_of(folder, **changes):
  return image_source("idx", **{"path": str(folder), "batch_size": 8, "seed": 0, **changes})


def test_idx_files_are_read(idx):
  made = load_images("idx", str(idx))
  assert made.train_images.shape == (20, 4, 3, 1)
  assert made.test_labels.tolist() == [0, 1, 2, 3, 4, 5]
  assert made.classes == 7
  with gzip.open(idx / "train-images-idx3-ubyte.gz") as file:
    assert made.train_images[0, 0, :, 0].tolist() == list(file.read()[16:19])


def test_every_epoch_holds_every_picture_once_in_another_order(idx):
  source = source_of(idx)
  made = load_images("idx", str(idx))
  seen = np.concatenate([source.batch(step, split="train")["image"] for step in range(5)])  # two epochs
  first, second = seen[:20].reshape(20, -1), seen[20:].reshape(20, -1)
  wanted = np.unique(made.train_images.reshape(20, -1), axis=0)
  np.testing.assert_array_equal(np.unique(first, axis=0), wanted)
  np.testing.assert_array_equal(np.unique(second, axis=0), wanted)
  assert (first != second).any()
  assert (source.batch(0, split="train")["image"] != source_of(idx, seed=1).batch(0, split="train")["image"]).any()
  np.testing.assert_array_equal(
    source.batch(7, split="train")["label"], source_of(idx).batch(7, split="train")["label"]
  )


def test_labels_stay_with_their_pictures_and_processes_read_their_rows_alone(idx):
  source, made = source_of(idx), load_images("idx", str(idx))
  batch = source.batch(4, split="train")
  for image, label in zip(batch["image"], batch["label"], strict=True):
    found = (made.train_images == image).all((1, 2, 3)).argmax()
    assert made.train_labels[found] == label
  part = source.batch(4, split="train", rows=slice(2, 5))
  np.testing.assert_array_equal(part["image"], batch["image"][2:5])
  np.testing.assert_array_equal(part["label"], batch["label"][2:5])


def test_the_held_out_set_is_whole_and_in_order(idx):
  source = source_of(idx)
  tests = [source.batch(k, split="test") for k in range(source.eval_batches["test"])]
  np.testing.assert_array_equal(np.concatenate([t["image"] for t in tests]), load_images("idx", str(idx)).test_images)


def test_statistics_are_those_of_the_training_pictures(idx):
  info, pictures = source_of(idx).info, load_images("idx", str(idx)).train_images
  np.testing.assert_allclose(info["mean"], pictures.mean(0), rtol=1e-5)
  ready = standardise(pictures, mean=info["mean"], std=info["std"])
  assert ready.dtype == np.float32
  assert float(ready.std()) == pytest.approx(1.0, rel=1e-5)
  np.testing.assert_allclose(ready.mean(0), 0, atol=1e-5)
  few = source_of(idx, train_examples=5)
  assert few.info["d_unique_total"] == 5
  np.testing.assert_allclose(few.info["mean"], pictures[:5].mean(0), rtol=1e-5)
  assert few.info["fingerprint"] != info["fingerprint"]


def test_large_sets_are_averaged_in_parts():
  pictures = np.random.default_rng(0).integers(256, size=(2500, 3, 3, 1), dtype=np.uint8)
  mean, std = images._statistics(pictures)
  assert std == pytest.approx(float(np.sqrt(np.square(pictures - pictures.mean(0)).mean())), rel=1e-3)
  np.testing.assert_allclose(mean, pictures.mean(0), rtol=1e-6)


@pytest.mark.parametrize(
  ("examples", "batch"), [(297, 297), (10_000, 500), (50_000, 500), (1_797, 500), (1_006, 500), (6, 6)]
)
def test_batches_of_a_held_out_set_are_whole_where_they_can_be(examples, batch):
  assert whole_batches(examples) == batch


def test_positions_far_out_and_a_batch_over_several_epochs():
  drawn = order_of_epochs(np.arange(10**12, 10**12 + 9, dtype=np.int64), count=3, seed=5)
  assert all(sorted(drawn[k : k + 3]) == [0, 1, 2] for k in (2, 5))  # 10**12 = 1 mod 3: epochs begin at index 2


def test_digits_are_optdigits(monkeypatch, tmp_path):
  """From a stand-in for the file that scikit-learn ships, in the cache."""
  monkeypatch.setenv("ILYA_JAX_CACHE", str(tmp_path))
  load_images.cache_clear()
  if _sklearn_is_there():
    pytest.skip("scikit-learn's own file is taken")
  with pytest.raises(UserError, match="fetch_data digits"):
    load_images("digits")
  rng = np.random.default_rng(0)
  table = np.concatenate([rng.integers(17, size=(1797, 64)), rng.integers(10, size=(1797, 1))], 1)
  (tmp_path / "raw" / "digits").mkdir(parents=True)
  with gzip.open(tmp_path / "raw" / "digits" / "digits.csv.gz", "wt") as file:
    np.savetxt(file, table, fmt="%d", delimiter=",")
  made = load_images("digits")
  load_images.cache_clear()
  assert made.train_images.shape == (1500, 8, 8, 1)
  assert made.test_images.shape == (297, 8, 8, 1)
  np.testing.assert_array_equal(np.rint(made.test_images.reshape(297, 64) * (16 / 255)), table[1500:, :64])
  np.testing.assert_array_equal(made.train_labels, table[:1500, 64])


def _sklearn_is_there():
  import importlib.util

  return importlib.util.find_spec("sklearn") is not None


def png(image):
  """The picture as a file's bytes: TFDS itself would need TensorFlow to encode it."""
  file = io.BytesIO()
  Image.fromarray(image).save(file, "png")
  return file.getvalue()


def prepare(folder, *, set_name, shape, sides, splits):
  """Prepares a TFDS set of random pictures in array_record format; returns what it holds, in the order of its files."""
  import tensorflow_datasets as tfds

  rng = np.random.default_rng(0)
  held = {
    split: [(rng.integers(256, size=(*sides(k), 3), dtype=np.uint8), k % 4) for k in range(count)]
    for split, count in splits.items()
  }

  class Pictures(tfds.core.GeneratorBasedBuilder, skip_registration=True):
    name = set_name
    VERSION = tfds.core.Version("1.0.0")

    def _info(self):
      features = {
        "image": tfds.features.Image(shape=shape, encoding_format="png"),
        "label": tfds.features.ClassLabel(num_classes=4),
      }
      return tfds.core.DatasetInfo(builder=self, features=tfds.features.FeaturesDict(features))

    def _split_generators(self, _):
      return {split: self._examples(split) for split in held}

    def _examples(self, split):
      yield from ((k, {"image": png(image), "label": label}) for k, (image, label) in enumerate(held[split]))

    def _generate_examples(self):
      raise NotImplementedError

  tfds.disable_progress_bar()
  Pictures(data_dir=str(folder), file_format="array_record").download_and_prepare()
  tfds.enable_progress_bar()
  builder = tfds.builder(set_name, data_dir=str(folder))
  read = {split: [(example["image"], example["label"]) for example in builder.as_data_source(split)] for split in held}
  for split, pictures in held.items():
    wanted = {image.tobytes(): label for image, label in pictures}
    assert {image.tobytes(): label for image, label in read[split]} == wanted
  return read


def test_a_prepared_set_of_one_size_is_decoded_once(tmp_path, monkeypatch):
  monkeypatch.setenv("ILYA_JAX_CACHE", str(tmp_path / "cache"))
  held = prepare(tmp_path, set_name="squares", shape=(6, 6, 3), sides=lambda k: (6, 6), splits={"train": 10, "test": 4})
  source = image_source("tfds:squares", path=str(tmp_path), batch_size=10, seed=0)
  kept = sorted(path.name for path in (tmp_path / "cache" / "images").glob("*/*"))
  assert kept == ["test_images.npy", "test_labels.npy", "train_images.npy", "train_labels.npy"]
  batch = source.batch(0, split="train")
  wanted = {image.tobytes(): label for image, label in held["train"]}
  assert {image.tobytes(): label for image, label in zip(batch["image"], batch["label"], strict=True)} == wanted
  assert source.info["shape"] == (6, 6, 3)
  assert source.info["classes"] == 4
  load_images.cache_clear()
  again = image_source("tfds:squares", path=str(tmp_path), batch_size=10, seed=0)
  assert again.info["fingerprint"] == source.info["fingerprint"]


def test_a_prepared_set_of_several_sizes_is_streamed(tmp_path):
  """As imagenet2012 is: every training picture is a window of the picture at some scale, tests are its middle."""
  sides = lambda k: (300 + 7 * k, 260 + 90 * (k % 3))  # noqa: E731
  held = prepare(tmp_path, set_name="sizes", shape=(None, None, 3), sides=sides, splits={"train": 4, "validation": 2})
  source = image_source("tfds:sizes", path=str(tmp_path), batch_size=3, seed=0, size=32)
  batch = source.batch(5, split="train")
  assert batch["image"].shape == (3, 32, 32, 3)
  again = source.batch(5, split="train", rows=slice(1, 3))
  np.testing.assert_array_equal(again["image"], batch["image"][1:])
  chosen = order_of_epochs(np.arange(15, 18, dtype=np.int64), count=4, seed=0)
  assert batch["label"].tolist() == [held["train"][k][1] for k in chosen]
  short = [int(np.random.Generator(np.random.Philox(key=[0, 15])).integers(256, 481))]
  picture = scaled(held["train"][chosen[0]][0], short_side=short[0])
  assert min(picture.shape[:2]) == short[0]
  windows = np.lib.stride_tricks.sliding_window_view(picture[:, :, 0], (32, 32))
  assert (windows[:, :, 0, :4] == batch["image"][0, 0, :4, 0]).all(-1).any()
  test = source.batch(0, split="test")
  assert source.eval_batches == {"test": 1}
  np.testing.assert_array_equal(test["image"][0], middle(scaled(held["validation"][0][0], short_side=256), size=32))
  assert source.info["mean"].shape == (1, 1, 3)


def test_scaling_keeps_the_shape_and_the_middle_is_the_middle():
  picture = np.random.default_rng(0).integers(256, size=(100, 50, 3), dtype=np.uint8)
  small = scaled(picture, short_side=25)
  assert small.shape == (50, 25, 3)
  np.testing.assert_array_equal(small, np.asarray(Image.fromarray(picture).resize((25, 50), Image.Resampling.BILINEAR)))
  np.testing.assert_array_equal(middle(picture, size=20), picture[40:60, 15:35])
  assert scaled(picture[..., :1], short_side=30).shape == (60, 30, 1)


@pytest.mark.parametrize(
  ("name", "changes", "message"),
  [
    ("mnist", {}, "templates:<n>, digits"), ("templates:x", {"size": 8}, "templates:NUMBER"),
    ("idx", {"path": "/nowhere"}, "data.path"), ("idx", {}, "data.path"),
    ("fashion_mnist", {"path": "/nowhere"}, "four IDX files"), ("tfds:no_such_set", {}, "not found"),
  ],
)  # fmt: skip
def test_refusals(name, changes, message, tmp_path, monkeypatch):
  monkeypatch.setenv("ILYA_JAX_CACHE", str(tmp_path))
  with pytest.raises(UserError, match=message):
    image_source(name, batch_size=4, seed=0, **changes)


def test_files_that_are_no_idx_and_too_many_examples_are_refused(idx):
  with pytest.raises(UserError, match="0 to 20"):
    source_of(idx, train_examples=21)
  (idx / "train-labels-idx1-ubyte").write_bytes(b"\0\0\x08\x01\0\0\0\x09abc")
  load_images.cache_clear()
  with pytest.raises(UserError, match="no IDX file"):
    source_of(idx)
  (idx / "train-labels-idx1-ubyte").unlink()
  with pytest.raises(UserError, match=r"no train-labels-idx1-ubyte.gz"):
    source_of(idx)


def fetch(*arguments, **environment):
  return subprocess.run([FETCH, *arguments], env={**os.environ, **environment}, capture_output=True, text=True)


def test_fetch_data_refuses_digits_of_another_content(tmp_path):
  """A stand-in for pip leaves a wheel whose file is not the one."""
  wheel = tmp_path / "scikit_learn-0-any.whl"
  with zipfile.ZipFile(wheel, "w") as archive:
    archive.writestr("sklearn/datasets/data/digits.csv.gz", gzip.compress(b"1,2,3\n"))
  python = tmp_path / "python"
  python.write_text(
    '#!/bin/sh\nif [ "$2" = pip ]; then while [ "$1" != --dest ]; do shift; done; '
    f'cp {wheel} "$2"; else exec python3 "$@"; fi\n'
  )
  python.chmod(0o755)
  failed = fetch("digits", ILYA_JAX_CACHE=str(tmp_path / "cache"), PYTHON=str(python))
  assert failed.returncode == 1
  assert failed.stderr.startswith("error: digits.csv has SHA-256")
  assert os.listdir(tmp_path / "cache" / "raw") == []

"""Sets that TensorFlow Datasets has prepared in a random-access format, read by index without TensorFlow."""

from typing import Any

from ilya_jax.errors import UserError


def open_builder(name: str, data_dir: str) -> tuple[Any, set[str]]:
  """Builder and names of the prepared splits."""
  import tensorflow_datasets as tfds  # takes a second to import, and only this source needs it

  try:
    builder = tfds.builder(name, data_dir=data_dir or None)
  except (ValueError, AssertionError, ImportError) as error:  # DatasetNotFoundError is a ValueError
    reason = (str(error).strip().splitlines() or [type(error).__name__])[0][:200]
    raise UserError(
      f"tfds set {name!r}: {reason}", "a set known to or prepared for TensorFlow Datasets", "change --config.data.name"
    ) from error
  if not builder.info.splits:
    raise UserError(
      f"tfds set {name!r} is not prepared in {builder.data_dir}",
      "its files in array_record format",
      f"run `tfds build {name} --file_format=array_record` (extra `tf`), or set --config.data.path to its data_dir",
    )
  return builder, set(builder.info.splits)


def open_split(name: str, builder: Any, split: str) -> Any:
  """Random access to the examples of a split."""
  try:
    return builder.as_data_source(split=split)
  except (NotImplementedError, ValueError) as error:
    raise UserError(
      f"tfds set {name!r} is prepared in {builder.data_dir} without random access",
      "its files in array_record format",
      f"run `tfds convert_format --dataset_version_dir={builder.data_dir} --out_file_format=array_record` (extra `tf`)",
    ) from error

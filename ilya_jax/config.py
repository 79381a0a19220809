"""Configs: loading `path[:variant]`, overrides from the command line, validation, and a run's identity."""

import ast
import difflib
import hashlib
import importlib.util
import json
import re
import types
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from ml_collections import ConfigDict

from ilya_jax.errors import UserError, did_you_mean

# Fields that decide how a run is executed, not what it computes: they do not enter a run's id.
EXECUTION_FIELDS = ("mesh", "pipeline", "execution", "checkpoint", "log_every", "profile", "eval.every")

# Fields that the training loop takes as arrays: runs that differ in nothing else share one compiled program.
RUNTIME_FIELDS = (
  "seed",
  "steps",
  "schedule",
  "optim.learning_rate",
  "init_from",
  "checkpoint",
  "log_every",
  "profile",
  "eval.every",
)

# The common fields of every config, for those that a config file does not name itself. Sections are filled field by field.
DEFAULTS: dict[str, Any] = {
  "seed": 0,
  "accumulate": 1,  # micro-batches a step, their gradients averaged
  "dtype": "float32",  # of the computation; parameters are float32 always
  "init_from": "",  # workdir of a run whose parameters to start from
  "schedule": {
    "name": "wsd",  # constant with a cooldown; or constant, or a schedule of optax by its name
    "warmup_steps": 0,
    "cooldown_fraction": 0.0,
    "final_fraction": 0.0,  # of the rate, at the end of the cooldown
    "options": {},  # of `drops`, or of a schedule of optax
  },
  "mesh": {"data": -1, "fsdp": 1, "tensor": 1, "stage": 1},  # one of them may be -1: what is left
  "pipeline": {
    "microbatches": 1,
    "virtual_stages": 1,  # cells of layers on each of mesh.stage devices
    "partition": (),  # layers in each cell; (): so that the costliest cell is as cheap as possible
    "remat": True,  # cells recompute their inside in the backward pass
    "tick_unroll": 1,  # ticks written out per iteration of the loop over ticks
  },
  "execution": {
    "steps_per_dispatch": 16,
    "unroll_steps": False,  # those of a dispatch, and micro-batches, written out: convolutions on a CPU want it
    "remat": False,  # layers recompute their inside in the backward pass
    "noise_scale": False,  # logs |G|^2 and tr(Sigma) of the gradient: `train.gradient_noise`
    "tensorboard": True,
  },
  "eval": {"every": 0},  # steps; 0: at the end
  "checkpoint": {
    "every": 0,  # steps; 0: at the end
    "every_s": 0.0,  # seconds; 0: never by time
    "keep": 2,
    "keep_steps": (),
    "dir": "",  # folder or gs:// in which the run makes a folder for them; "": in the workdir
  },
  "log_every": 10,
  "profile": "",  # START:STOP, steps of which a trace is written
}


def load_file(spec: str, *, function: str, flag: str) -> Any:
  """Runs `function(variant)` of the Python file named by `path[:variant]` and returns what it returns.

  Raises UserError where the file is missing, raises, lacks the function or does not know the variant.
  """
  path, _, variant = spec.partition(":")
  file = Path(path)
  if not file.is_file():
    where = "" if Path("configs").is_dir() else " (no configs/ here: run inside a checkout, or give the whole path)"
    close = difflib.get_close_matches(file.name, [p.name for p in file.parent.glob("*.py")], n=1)
    hint = f", did you mean {file.with_name(close[0])}?" if close else ""
    raise UserError(f"no file {path}{hint}{where}", "a Python file PATH[:VARIANT]", flag)
  try:
    module = types.ModuleType(f"_ilya_jax_{file.stem}")
    module.__file__ = str(file)
    exec(
      compile(file.read_bytes(), str(file), "exec"), module.__dict__
    )  # imported, it would leave a __pycache__ behind
    getter = getattr(module, function)
  except Exception as error:
    raise UserError(
      f"{path} raises {type(error).__name__}: {error}", f"a file that defines {function}(arg)", flag
    ) from error
  variants = getattr(module, "VARIANTS", ("",))
  if variant not in variants:
    hint = did_you_mean(variant, variants)
    names = ", ".join(name or "(none)" for name in variants)
    raise UserError(f"unknown variant {variant!r} of {path}{hint}", f"one of {names}", f"{flag} {path}:VARIANT")
  try:
    return getter(variant)
  except Exception as error:
    raise UserError(f"{spec} raises {type(error).__name__}: {error}", "a file that can be run", flag) from error


def load_config(spec: str, overrides: Mapping[str, Any] | None = None, *, flag: str = "--config") -> ConfigDict:
  """The locked config of `path[:variant]` with `overrides` (dotted field -> value or text) applied and checked."""
  config = load_file(spec, function="get_config", flag=flag)
  if not isinstance(config, ConfigDict):
    raise UserError(f"{spec} returns {type(config).__name__}", "an ml_collections ConfigDict from get_config", flag)
  config = with_defaults(config)
  for field, value in (overrides or {}).items():
    set_field(config, field, value)
  config.lock()
  validate(config)
  return config


def with_defaults(config: ConfigDict) -> ConfigDict:
  """A copy of a config, with the common fields that it does not name (`DEFAULTS`)."""
  made = ConfigDict(config.to_dict())
  for name, value in DEFAULTS.items():
    if isinstance(value, dict):
      made[name] = ConfigDict({**value, **made.get(name, ConfigDict()).to_dict()})
    elif name not in made:
      made[name] = value
  return made


def fields(config: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, Any]]:
  """All leaves of a config as (dotted name, value), sorted by name."""
  for key in sorted(config.keys()):
    value = config[key]
    if isinstance(value, Mapping | ConfigDict):
      yield from fields(value, f"{prefix}{key}.")
    else:
      yield f"{prefix}{key}", value


def set_field(config: ConfigDict, field: str, value: Any) -> None:
  """Sets a dotted field in place; text is read as the present type. Raises UserError on an unknown field or type."""
  flag = f"--config.{field}"
  *sections, last = field.split(".")
  node: Any = config
  for section in sections:
    node = node[section] if isinstance(node, ConfigDict) and section in node else None
  if not isinstance(node, ConfigDict) or last not in node or isinstance(node[last], ConfigDict):
    names = [name for name, _ in fields(config)]
    close = difflib.get_close_matches(field, names, n=1, cutoff=0.5)
    hint = f", did you mean config.{close[0]}?" if close else ""
    raise UserError(f"unknown field config.{field}{hint}", "a field of the config", flag)
  node[last] = _coerce(value, node[last], flag=flag)


def _coerce(value: Any, present: Any, *, flag: str) -> Any:
  """`value` as the type of `present`; text is parsed. Raises UserError where it cannot be."""
  kind = type(present)
  expected = {bool: "true or false", int: "a whole number", float: "a number"}.get(kind, f"a {kind.__name__}")
  try:
    if kind is str:
      return str(value)
    if kind is bool:
      named = {"true": True, "false": False, "1": True, "0": False}
      return named[str(value).lower()]
    if kind is int:
      number = float(value)
      if isinstance(value, bool) or number != int(number):
        raise ValueError
      return int(value) if isinstance(value, int) else int(number)
    if kind is float:
      return float(value)
    parsed = ast.literal_eval(value) if isinstance(value, str) else value
    if present is not None and not isinstance(parsed, kind | list | tuple):
      raise ValueError
    return kind(parsed) if present is not None else parsed
  except (ValueError, KeyError, SyntaxError, TypeError, OverflowError) as error:
    raise UserError(f"{value!r}", expected, flag) from error


_AT_LEAST = {
  "steps": 1, "batch_size": 1, "log_every": 1, "seed": 0, "accumulate": 1, "checkpoint.keep": 1, "checkpoint.every": 0,
  "eval.every": 0, "eval.tokens": 1, "schedule.warmup_steps": 0, "execution.steps_per_dispatch": 1,
  "pipeline.microbatches": 1, "pipeline.virtual_stages": 1, "pipeline.tick_unroll": 1,
  "data.context": 1, "model.n_layers": 1, "model.d_model": 1, "model.n_heads": 1,
}  # fmt: skip


def validate(config: ConfigDict) -> None:
  """Checks the ranges of the common fields. Raises UserError naming the field."""
  values = dict(fields(config))
  for name, least in _AT_LEAST.items():
    if name in values and values[name] < least:
      raise UserError(f"config.{name} = {values[name]}", f"at least {least}", f"--config.{name}")
  for name in ("fsdp", "tensor", "stage", "data"):
    size = values.get(f"mesh.{name}", 1)
    if size != -1 and size < 1:
      raise UserError(
        f"config.mesh.{name} = {size}", "a size of at least 1, or -1 for what is left", f"--config.mesh.{name}"
      )
  if config.dtype not in ("float32", "bfloat16"):
    raise UserError(f"config.dtype = {config.dtype!r}", "float32 or bfloat16", "--config.dtype")
  if config.batch_size % config.accumulate:
    raise UserError(
      f"config.batch_size = {config.batch_size} with config.accumulate = {config.accumulate}",
      "a batch that the number of micro-batches divides", "--config.accumulate",
    )  # fmt: skip
  if not config.optim.learning_rate > 0:
    raise UserError(
      f"config.optim.learning_rate = {config.optim.learning_rate}", "a positive number", "--config.optim.learning_rate"
    )

  profile_range(config)
  _check_checkpoints_can_go_to(config.checkpoint.dir)


def profile_range(config: ConfigDict) -> range:
  """The steps that config.profile = START:STOP names: empty for '', which names none. Raises UserError on anything else."""
  if not config.profile:
    return range(0)
  found = re.fullmatch(r"(\d+):(\d+)", config.profile)
  steps = range(*(int(number) for number in found.groups())) if found else range(0)
  if not steps or steps.start >= config.steps:
    expected = f"START:STOP, two steps with START below STOP and below the {config.steps} of the run"
    raise UserError(f"config.profile = {config.profile!r}", expected, "--config.profile")
  return steps


def _check_checkpoints_can_go_to(place: str) -> None:
  """Raises UserError on a config.checkpoint.dir that is a URL, but not gs://, or without the package that lists and removes there.

  Orbax writes to gs:// and to folders; to s3:// not as of 0.12.8, whose `tensorstore_utils._normalize_path` takes the URL for a
  relative path.
  """
  scheme, separator, _ = place.partition("://")
  if not separator:
    return
  got, flag = f"config.checkpoint.dir = {place!r}", "--config.checkpoint.dir"
  if scheme != "gs":
    raise UserError(got, "a folder (a mounted bucket, for one) or gs://BUCKET/FOLDER, which Orbax can write to", flag)
  if importlib.util.find_spec("gcsfs") is None:
    raise UserError(f"{got} without gcsfs", "pip install 'ilya-jax[gs]'", flag)


def without(config: ConfigDict, names: Sequence[str]) -> dict[str, Any]:
  """The config's leaves as a flat dict, less the named fields and sections."""
  return {
    name: value
    for name, value in fields(config)
    if not any(name == dropped or name.startswith(f"{dropped}.") for dropped in names)
  }


def digest(values: Any, *, length: int = 12) -> str:
  """The first hexadecimal digits of the SHA-256 of canonical JSON."""
  text = json.dumps(values, sort_keys=True, separators=(",", ":"), default=str)
  return hashlib.sha256(text.encode()).hexdigest()[:length]


def run_id(config: ConfigDict, fingerprint: str, *, microbatches: bool = False) -> str:
  """A run's id: a hash of the config without its execution fields, and of the data's fingerprint.

  microbatches: whether their number changes what is computed, and so belongs to the id.
  """
  values = {"config": without(config, EXECUTION_FIELDS), "data": fingerprint}
  return digest({**values, "microbatches": config.pipeline.microbatches} if microbatches else values)

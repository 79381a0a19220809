"""Several processes as one program: how they find each other, what they agree on, and how an array is put on their devices."""

import ctypes
import functools
import json
import os
import signal
import sys
import tempfile
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import jax
import numpy as np
from jax.experimental import multihost_utils
from jax.sharding import NamedSharding, PartitionSpec

from ilya_jax.errors import Preempted, RunFailed, UserError
from ilya_jax.parallel.devices import accelerator, on_cpu

PyTree = Any
_GONE = "error: another process is gone, or an operation failed ({}); start all again to go on from the last checkpoint"
_APART = "error: the processes did not come together within {} s ({{}}); start all of them, with one --coordinator"
_START_S = 100  # for the others to come; --heartbeat where that is longer
_abort: dict[str, Any] = {}  # what an abort says, and its handler, kept for as long as the C library may call it


def wanted(environment: Mapping[str, str]) -> bool:
  """Whether the environment says that this process is one of several: JAX's variables, Slurm's srun, Open MPI, a TPU pod."""
  return (
    "JAX_COORDINATOR_ADDRESS" in environment
    or int(environment.get("SLURM_STEP_NUM_TASKS", "1")) > 1
    or int(environment.get("OMPI_COMM_WORLD_SIZE", "1")) > 1
    or "," in environment.get("TPU_WORKER_HOSTNAMES", "")
    or _may_be_in_a_pod(environment)
  )


def _may_be_in_a_pod(environment: Mapping[str, str]) -> bool:
  """Whether this is a TPU machine whose slice only Google's metadata server knows; JAX asks it, and one machine may be all."""
  told = ("TPU_WORKER_HOSTNAMES", "TPU_PROCESS_ADDRESSES", "TPU_SKIP_MDS_QUERY")
  return not any(name in environment for name in told) and not on_cpu() and accelerator() == "tpu"


def check_flags(*, coordinator: str, processes: int, index: int) -> bool:
  """Whether flags name the processes; raises UserError on ones that do not go together."""
  given = (bool(coordinator), processes > 0, index >= 0)
  if any(given) and (not all(given) or index >= processes or ":" not in coordinator):
    got = f"--coordinator {coordinator or '?'} --num-processes {processes} --process-id {index}"
    raise UserError(got, "all three: HOST:PORT, N of 1 or more, an id below N", "--coordinator")
  return any(given)


def start(
  *, coordinator: str = "", processes: int = 0, index: int = -1, heartbeat_s: int = 60,
  environment: Mapping[str, str] = os.environ,
) -> None:  # fmt: skip
  """Joins the other processes where there are any; to be called before any computation.

  coordinator: HOST:PORT of process 0, which all can reach. Without flags, the environment is asked (`wanted`); JAX_NUM_PROCESSES and
  JAX_PROCESS_ID go with JAX_COORDINATOR_ADDRESS. A process that is not heard of for `heartbeat_s` seconds ends all;
  at the start the others have that long, and at least 100 s, to come.
  Raises UserError on flags that do not go together, and on a coordinator that cannot be; where the others do not come,
  the process ends with a line and exit code 1.
  """
  given = check_flags(coordinator=coordinator, processes=processes, index=index)
  if not given and not wanted(environment):
    return
  if on_cpu():
    jax.config.update("jax_cpu_collectives_implementation", "gloo")
  start_s = max(_START_S, heartbeat_s)
  settings: dict[str, Any] = {"heartbeat_timeout_seconds": heartbeat_s, "initialization_timeout": start_s}
  if given:
    settings |= {"coordinator_address": coordinator, "num_processes": processes, "process_id": index}
  elif "JAX_COORDINATOR_ADDRESS" in environment and "JAX_NUM_PROCESSES" in environment:
    settings |= {
      "num_processes": int(environment["JAX_NUM_PROCESSES"]), "process_id": int(environment.get("JAX_PROCESS_ID", "0")),
    }  # fmt: skip
  elif "SLURM_STEP_NUM_TASKS" in environment and _sees_only_its_own(environment):
    settings["local_device_ids"] = []  # all; JAX would take the GPU numbered SLURM_LOCALID alone
  if "coordinator_address" in settings or "num_processes" in settings:
    settings["cluster_detection_method"] = "deactivate"
  _one_line_at_abort(_APART.format(start_s))
  try:
    jax.distributed.initialize(**settings)
    _abort["line"] = _GONE
  except (ValueError, RuntimeError, OSError) as error:
    raise UserError(
      f"the processes did not come together: {str(error).splitlines()[0]}", "all of them", "--coordinator"
    ) from error


def _sees_only_its_own(environment: Mapping[str, str]) -> bool:
  """Whether the GPUs that a task of Slurm sees are all its own: one task a node, or each bound to one GPU by Slurm."""
  tasks = environment.get("SLURM_STEP_TASKS_PER_NODE", "")  # such as 1(x2),3
  alone = {count.partition("(")[0] for count in tasks.split(",")} == {"1"}
  visible = environment.get("CUDA_VISIBLE_DEVICES", environment.get("ROCR_VISIBLE_DEVICES", ""))
  return alone or (visible != "" and "," not in visible)


def _one_line_at_abort(line: str) -> None:
  """Makes the runtime's way of ending this process a line and exit code 1; its own words go to a file, which fills the line's {}.

  The coordination service aborts with a page of C++ frames, and its callback cannot be written in Python (jaxlib 0.10).
  """
  handle, name = tempfile.mkstemp(prefix="ilya_jax_", suffix=".log")
  shown = os.dup(2)
  sys.stderr = os.fdopen(shown, "w", buffering=1)
  os.dup2(handle, 2)  # what C++ prints

  def aborted(signum: int) -> None:
    os.write(shown, (_abort["line"].format(f"see {name}") + "\n").encode())
    os._exit(1)

  _abort.update(line=line, handler=ctypes.CFUNCTYPE(None, ctypes.c_int)(aborted))
  ctypes.CDLL(None).signal(signal.SIGABRT, _abort["handler"])


def several() -> bool:
  """Whether this process is one of several, which have not parted. It starts no device."""
  return jax.distributed.is_initialized() and jax.process_count() > 1


def is_first() -> bool:
  """Whether this is process 0, which writes what is written once."""
  return not several() or jax.process_index() == 0


def first_does(action: Callable[[], None]) -> None:
  """Process 0 does something that may fail; the others wait, and fail with it. Raises what it raises, or UserError."""
  if not several():
    action()
    return
  failure: Exception | None = None
  if is_first():
    try:
      action()
    except Exception as error:
      failure = error
  failed = bool(multihost_utils.broadcast_one_to_all(np.int32(failure is not None)))
  if failure is not None:
    raise failure
  if failed:
    raise UserError("process 0 stopped", "see what it says", "--process-id")


def first_tells(find: Callable[[], Any]) -> Any:
  """What process 0 finds, on every process: anything that JSON can hold. Raises as `first_does` does."""
  if not several():
    return find()
  found: list[bytes] = []
  first_does(lambda: found.append(json.dumps(find()).encode()))
  own = found[0] if found else b""
  size = int(multihost_utils.broadcast_one_to_all(np.int32(len(own))))
  text = multihost_utils.broadcast_one_to_all(np.frombuffer(own.ljust(size), np.uint8))
  return json.loads(bytes(np.asarray(text)))


def leave() -> None:
  """All processes wait for one another and part; each goes on, or ends, by itself. To be called where none trains any more."""
  if several():
    jax.distributed.shutdown()


def all_agree(holds: bool) -> bool:
  """Whether something holds on every process."""
  return holds if not several() else bool(multihost_utils.process_allgather(np.int32(holds)).all())


class Agreement:
  """Numbers of which the largest over all processes counts, known one call late so that an accelerator never waits for it."""

  def __init__(self) -> None:
    self._pending: Any = None

  def largest(self, *values: int) -> tuple[int, ...]:
    """Gives this process's values, and returns the largest of each over all processes, of the call before this one.

    On a single process: the values themselves, at once. The first call of several processes returns zeros.
    """
    if not several():
      return values
    rows, reduce = _row_maximum()
    given = jax.make_array_from_process_local_data(rows, np.asarray([values], np.int32))
    before, self._pending = self._pending, reduce(given)
    if on_cpu():  # gloo needs its operations in the same order everywhere
      jax.block_until_ready(self._pending)
    return (0,) * len(values) if before is None else tuple(int(value) for value in np.asarray(before))


@functools.cache
def _row_maximum() -> tuple[NamedSharding, Any]:
  """A sharding with one row on a device of each process, and the compiled maximum over these rows."""
  first = {device.process_index: device for device in reversed(jax.devices())}
  mesh = jax.sharding.Mesh(np.array([first[k] for k in sorted(first)]), ("process",))
  everywhere = NamedSharding(mesh, PartitionSpec())
  return NamedSharding(mesh, PartitionSpec("process")), jax.jit(lambda rows: rows.max(0), out_shardings=everywhere)


def own_rows(sharding: NamedSharding, shape: tuple[int, ...], *, axis: int) -> slice:
  """The range along `axis` of a global array of `shape` that this process's devices hold."""
  held = sharding.addressable_devices_indices_map(shape).values()
  parts = [index[axis].indices(shape[axis])[:2] for index in held if index is not None]
  return slice(min(a for a, _ in parts), max(b for _, b in parts))


def put(tree: PyTree, sharding: NamedSharding, *, rows: int, axis: int = 0) -> PyTree:
  """Host arrays on the mesh: each holds this process's `own_rows` of the `rows` along `axis` of the global array."""
  if not several():
    return jax.device_put(tree, sharding)

  def place(leaf):
    shape = (*leaf.shape[:axis], rows, *leaf.shape[axis + 1 :])
    return jax.make_array_from_process_local_data(sharding, np.asarray(leaf), shape)

  return jax.tree.map(place, tree)


def whole(leaf: jax.Array) -> np.ndarray:
  """All of an array, on every process."""
  return np.asarray(leaf if leaf.is_fully_addressable else multihost_utils.process_allgather(leaf, tiled=True))


@contextmanager
def ending_together() -> Iterator[None]:
  """Ends this process of several at once, with one line, on an error that the others may not have.

  They wait for it, and the end of a process in order waits for them. What all of them raise alike passes.
  """
  try:
    yield
  except (UserError, RunFailed, Preempted):
    raise
  except Exception as error:
    if not several():
      raise
    words = " ".join(str(error).split())
    # As a rule; of Orbax's barriers some raise the second, some an OSError.
    gone = isinstance(error, (jax.errors.JaxRuntimeError, TimeoutError)) or "waiting at barrier" in words
    end_with(_GONE.format(words[:160]) if gone else f"error: {type(error).__name__}: {words}", 1)


def end_with(line: str, code: int) -> None:
  """Says why, and ends this process at once: with others gone, nothing can be shut down in order."""
  print(line, file=sys.stderr, flush=True)
  os._exit(code)

"""The Ray engine: an actor a place, in a cluster that runs or in one of this machine alone; each drives a worker process of its own.

The worker is that of the local engine, so that a cell is rounded as there on as many cores, gets signals in its main thread, and dies with
its actor. A pack that is killed, with its worker, actor or node, goes back to `run_packs`, which starts it again elsewhere.
"""

import contextlib
import math
import os
import signal
import socket
import time
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

from ilya_jax.errors import RunFailed, UserError
from ilya_jax.scaling import launch_local
from ilya_jax.scaling.launch import Ending, Pack, check_names
from ilya_jax.scaling.sweep import Cell

_NAMES = ("num_cpus", "num_gpus", "memory", "accelerator_type", "pending_s")
_CUSTOM = "resources."  # resources.TPU=4
_PENDING_S = 300.0  # for the first actor to get what it asks for
_ENVIRONMENT = ("JAX_", "XLA_", "LIBTPU_", "ILYA_JAX_")  # what a worker takes over from here
_OBJECTS_BYTES = 1 << 27  # the object store of a cluster of our own, which holds next to nothing
_STARTS = 3  # of such a cluster, where its daemons take too long


class Request(NamedTuple):
  """What each place asks for. amounts: resource, as Ray calls it -> how much; pending_s: how long it may wait for that, in seconds."""

  amounts: dict[str, float]
  accelerator_type: str = ""
  pending_s: float = _PENDING_S

  @property
  def cores(self) -> int:
    """Cores that a worker computes on."""
    return max(1, int(self.amounts["CPU"]))

  def __str__(self) -> str:
    asked = [f"{name} {amount:g}" for name, amount in self.amounts.items() if amount]
    return ", ".join(asked + ([self.accelerator_type] if self.accelerator_type else []))

  def fits(self, node: Mapping[str, float]) -> int:
    """How many such places a node has room for."""
    if self.accelerator_type and f"accelerator_type:{self.accelerator_type}" not in node:
      return 0
    return min(math.floor(node.get(name, 0) / amount) for name, amount in self.amounts.items() if amount)

  def options(self) -> dict[str, Any]:
    """As Ray's actors take it."""
    given = {"num_cpus": self.amounts["CPU"], "num_gpus": self.amounts["GPU"], "memory": int(self.amounts["memory"])}
    custom = {name: amount for name, amount in self.amounts.items() if name not in ("CPU", "GPU", "memory")}
    kind = {"accelerator_type": self.accelerator_type} if self.accelerator_type else {}
    return {**given, **({"resources": custom} if custom else {}), **kind}


def read_request(options: Mapping[str, str]) -> Request:
  """The request that launcher options make; one CPU where they say nothing. Raises UserError on unknown names and on values."""
  check_names([name for name in options if not name.startswith(_CUSTOM)], (*_NAMES, f"{_CUSTOM}NAME"), launcher="ray")
  numbers = {name: _amount(name, value) for name, value in options.items() if name != "accelerator_type"}
  if numbers.get("num_cpus", 1.0) < 1:
    raise UserError(f"num_cpus={options['num_cpus']}", "1 or more", "--launcher-option num_cpus")
  amounts = {
    "CPU": numbers.get("num_cpus", 1.0),
    "GPU": numbers.get("num_gpus", 0.0),
    "memory": numbers.get("memory", 0.0),
  }
  amounts |= {name.removeprefix(_CUSTOM): value for name, value in numbers.items() if name.startswith(_CUSTOM)}
  return Request(amounts, options.get("accelerator_type", ""), numbers.get("pending_s", _PENDING_S))


def _amount(name: str, text: str) -> float:
  try:
    value = float(text)
  except ValueError:
    value = -1.0
  if not 0 <= value < math.inf:
    raise UserError(f"{name}={text}", "a number, 0 or more (memory in bytes)", f"--launcher-option {name}")
  return value


def check_fits(request: Request, nodes: Sequence[Mapping[str, float]]) -> int:
  """How many places the nodes have room for. Raises UserError where it is none, with what the nodes have."""
  places = sum(request.fits(node) for node in nodes)
  if not places:
    asked = [name for name, amount in request.amounts.items() if amount]
    has = ", ".join(f"{name} {max((node.get(name, 0.0) for node in nodes), default=0.0):g}" for name in asked)
    raise UserError(
      f"no node of the Ray cluster has {request} (the most that any of {len(nodes)} has: {has})",
      "a request that one node can satisfy", "--launcher-option",
    )  # fmt: skip
  return places


def open_ray(options: Mapping[str, str], *, workers: int) -> "RayActors":
  """Connects to the cluster of RAY_ADDRESS, or of this machine, or starts one here. Raises UserError as `launch.open_engine` does."""
  request = read_request(options)
  os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
  os.environ.setdefault("RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO", "0")  # else Ray prints a tip
  try:
    import ray
  except ImportError as error:
    raise UserError("no ray", "pip install 'ilya-jax[ray]'", "--launcher") from error
  quiet: dict[str, Any] = {"log_to_driver": False, "logging_level": "CRITICAL"}
  _check_answers(os.environ.get("RAY_ADDRESS", "auto"))
  try:
    ray.init(address="auto", **quiet)
  except ConnectionError:
    _start_here(quiet)
  try:
    places = check_fits(request, [node["Resources"] for node in ray.nodes() if node["Alive"]])
  except UserError:
    ray.shutdown()
    raise
  return RayActors(request, count=min(workers or places, places))


def _start_here(quiet: Mapping[str, Any]) -> None:
  """A cluster of this machine; Ray gives its daemons 30 seconds, which a busy machine may need twice. Raises RunFailed."""
  import ray

  cores = len(os.sched_getaffinity(0))
  for _ in range(_STARTS):
    try:
      ray.init(address="local", num_cpus=cores, include_dashboard=False, object_store_memory=_OBJECTS_BYTES, **quiet)
      return
    except Exception as error:  # Ray raises no class of its own
      if "timed out" not in str(error):
        raise
      ray.shutdown()
  raise RunFailed(f"Ray's daemons did not answer within 30 seconds, {_STARTS} times: is this machine too busy?")


def _check_answers(address: str) -> None:
  """Raises UserError where nothing listens at HOST:PORT or ray://HOST:PORT: Ray itself would try for minutes, and say so at length."""
  host, _, port = address.rpartition("://")[2].rpartition(":")
  if not host:  # auto, local
    return
  try:
    with socket.create_connection((host, int(port)), timeout=10):
      pass
  except (OSError, ValueError) as error:
    raise UserError(
      f"no Ray cluster at RAY_ADDRESS={address} ({error})", "the address of a cluster that runs, or none", "RAY_ADDRESS"
    ) from error


class _Place:
  """An actor, the pack it runs, and its answer that is awaited."""

  def __init__(self, actor: Any):
    self.actor, self.asked = actor, time.monotonic()
    self.pack: Pack = ()
    self.answer: Any = None
    self.lives = False  # has answered once


class RayActors:
  """Actors, made at the first pack they get; one that dies is made anew for the next."""

  def __init__(self, request: Request, *, count: int):
    self._request, self._count = request, count
    self._places: dict[int, _Place] = {}

  @property
  def busy(self) -> bool:
    """Whether any pack is with an actor."""
    return any(place.pack for place in self._places.values())

  def adopt(self, packs: Sequence[Pack]) -> list[Pack]:
    """None: actors end with the process that made them."""
    return []

  def free(self) -> dict[int, str]:
    """Places without a pack, those with an actor first; which program is compiled where is not followed."""
    idle = [index for index in range(self._count) if index not in self._places or not self._places[index].pack]
    return {index: "" for index in sorted(idle, key=lambda index: index not in self._places)}

  def running(self) -> list[Cell]:
    """The cells of actors that have what they asked for."""
    return [cell for place in self._places.values() if place.lives for cell in place.pack]

  def start(self, place: int, pack: Pack, jobs: list[dict[str, Any]]) -> None:
    """Gives an actor a pack."""
    import ray

    if place not in self._places:
      environment = {name: value for name, value in os.environ.items() if name.startswith(_ENVIRONMENT)}
      actor_class = ray.remote(max_restarts=0, max_task_retries=0, **self._request.options())(_Actor)
      self._places[place] = _Place(actor_class.remote(self._request.cores, os.getcwd(), environment))
    at = self._places[place]
    at.pack, at.answer, at.asked = pack, at.actor.run.remote(jobs), time.monotonic()

  def finished(self, *, timeout_s: float) -> list[tuple[Pack, list[Ending]]]:
    """Packs that ended; waits about `timeout_s` for one. Raises UserError where no actor gets what it asks for in time."""
    import ray
    from ray.exceptions import RayError

    busy = {place.answer: index for index, place in self._places.items() if place.pack}
    ready, _ = ray.wait(list(busy), num_returns=len(busy), timeout=timeout_s)
    ended: list[tuple[Pack, list[Ending]]] = []
    for answer in ready:
      index = busy[answer]
      at = self._places[index]
      try:
        endings, at.lives = ray.get(answer), True
      except RayError as error:
        endings = [("killed", f"Ray: {type(error).__name__}")] * len(at.pack)
        del self._places[index]
      if endings is None:
        at.answer = at.actor.wait.remote()
        continue
      ended.append((at.pack, endings))
      at.pack = ()
    self._check_pending()
    return ended

  def _check_pending(self) -> None:
    import ray

    waiting = [place for place in self._places.values() if place.pack]
    oldest = min((place.asked for place in waiting), default=time.monotonic())
    if time.monotonic() - oldest > self._request.pending_s and not any(place.lives for place in self._places.values()):
      free = ", ".join(f"{name} {ray.available_resources().get(name, 0):g}" for name in self._request.amounts)
      raise UserError(
        f"no node of the Ray cluster had {self._request} free for {self._request.pending_s:g} s (free in all: {free})",
        "less, or a cluster that is less busy", "--launcher-option",
      )  # fmt: skip

  def stop(self) -> None:
    """Has the workers save and end; an actor that still waits for resources is given up."""
    import ray

    for index, place in list(self._places.items()):
      if place.pack and place.lives:
        place.actor.stop.remote()
      elif place.pack:
        ray.kill(place.actor)
        del self._places[index]

  def close(self) -> None:
    """Ends the actors, and the cluster where it is our own."""
    import ray

    for place in self._places.values():
      ray.kill(place.actor)
    self._places = {}
    ray.shutdown()


class _Actor:
  """In the cluster: a worker process with one pack at a time. Every method returns soon, so that `stop` gets its turn."""

  def __init__(self, cores: int, folder: str, environment: dict[str, str]):
    os.environ.update(environment)
    os.chdir(folder)  # configs are named from there
    self._cores, self._count = cores, 0
    self._worker: launch_local.Worker | None = None

  def run(self, jobs: list[dict[str, Any]]) -> None:
    """Starts a pack."""
    self._worker, self._count = self._worker or launch_local.spawn(self._cores), len(jobs)
    self._worker.connection.send(jobs)

  def wait(self) -> list[Ending] | None:
    """How the cells of the pack ended; None while they run."""
    assert self._worker is not None
    if not self._worker.connection.poll(0.5):
      return None
    endings, alive = launch_local.receive(self._worker, self._count)
    if not alive:
      self._worker = None
    return endings

  def stop(self) -> None:
    """Sends SIGTERM to the worker."""
    if self._worker is not None:
      with contextlib.suppress(ProcessLookupError):
        os.kill(self._worker.process.pid, signal.SIGTERM)

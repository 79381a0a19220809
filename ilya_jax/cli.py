"""The command line: parse, then call one function. Bad input ends with one line and exit code 2."""

import argparse
import errno
import logging
import os
import shlex
import sys
import threading
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, NoReturn

from ilya_jax.errors import Preempted, RunFailed, UserError, did_you_mean

_NO_ROOM = (errno.ENOSPC, errno.EDQUOT, errno.EROFS)  # of a disk that was writable when the command began


class _Parser(argparse.ArgumentParser):
  """An argument parser whose errors are UserErrors, and which prefers no abbreviations."""

  def error(self, message: str) -> NoReturn:
    raise UserError(message, f"see `{self.prog} --help`", "the arguments")


def _add(commands: Any, name: str, *, run: Callable[[Any], int], summary: str, example: str) -> argparse.ArgumentParser:
  parser = commands.add_parser(
    name, help=summary, description=summary, epilog=f"example:\n  {example}", allow_abbrev=False,
    formatter_class=argparse.RawDescriptionHelpFormatter,
  )  # fmt: skip
  parser.set_defaults(run=run)
  return parser


def make_parser() -> argparse.ArgumentParser:
  """The parser of all commands."""
  parser = _Parser(
    prog="ilya-jax", description="Train, sweep, and fit scaling laws.", allow_abbrev=False,
    epilog="example:\n  ilya-jax train --config configs/transformer_lm.py:tiny --workdir runs/tiny",
    formatter_class=argparse.RawDescriptionHelpFormatter,
  )  # fmt: skip
  commands = parser.add_subparsers(dest="command", metavar="COMMAND", parser_class=_Parser)
  train = _add(commands, "train", run=_train, summary="train one run; goes on by itself where DIR holds it",
               example="ilya-jax train --config configs/transformer_lm.py:tiny --workdir runs/a")  # fmt: skip
  train.add_argument("--config", metavar="PATH[:VARIANT]", help="a config file; --config.FIELD=VALUE changes a field")
  train.add_argument("--workdir", metavar="DIR", type=Path, help="folder of the run")
  _add_processes(train)
  sweep = _add(commands, "sweep", run=_sweep, summary="run a grid of cells, fit the laws, write the report",
               example="ilya-jax sweep configs/sweeps/lm_tiny.py --workdir runs/sweep")  # fmt: skip
  sweep.add_argument("sweep", metavar="PATH[:VARIANT]", help="a sweep file; --config.FIELD=VALUE changes every cell")
  sweep.add_argument("--workdir", metavar="DIR", type=Path, help="folder of the sweep")
  sweep.add_argument(
    "--launcher", default="local", metavar="local|slurm|ray", help="what runs the cells (default local)"
  )
  sweep.add_argument("--launcher-option", action="append", default=[], metavar="KEY=VALUE",
                     help="of slurm (partition=a, cpus_per_task=4, time=60, …) or ray (num_cpus=4, num_gpus=1, …)")  # fmt: skip
  sweep.add_argument(
    "--workers", type=int, default=0, help="cells at once (default, local: one a core on a CPU, else one)"
  )
  sweep.add_argument(
    "--pack", type=int, default=1, help="cells of one shape and length trained side by side in one program (default 1)"
  )
  sweep.add_argument(
    "--only", metavar="PATTERN", help="cells to run: 'family=lstm,model.d_model=64', or the start of an id"
  )
  sweep.add_argument(
    "--dry-run", action="store_true", help="print the cells with N, D, C, time and memory; start nothing"
  )
  _add_processes(sweep)
  status = _add(
    commands, "status", run=_status, summary="how far a run or a sweep is", example="ilya-jax status runs/sweep"
  )
  status.add_argument("dir", metavar="DIR", type=Path)
  status.add_argument(
    "--retry-failed", action="store_true", help="clear the failures, so that the next sweep runs them again"
  )
  _add_fit(commands)
  _add_plan(commands)
  _add_claims(commands)
  return parser


def _add_processes(parser: Any) -> None:
  parser.add_argument("--coordinator", default="", metavar="HOST:PORT", help="of process 0, where several run as one")
  parser.add_argument(
    "--num-processes", type=int, default=0, metavar="N", help="how many (else from Slurm, Open MPI, TPU)"
  )
  parser.add_argument("--process-id", type=int, default=-1, metavar="I", help="which of them this is, 0 to N-1")
  parser.add_argument(
    "--heartbeat",
    type=int,
    default=60,
    metavar="SECONDS",
    help="silence after which a process counts as gone (default 60)",
  )


def _add_fit(commands: Any) -> None:
  fit = _add(commands, "fit", run=_fit, summary="fit scaling laws to tables of (N, D, C, loss) or to sweeps",
             example="ilya-jax fit runs.csv --columns 'N=params,D=tokens,loss=val_loss' --out runs/fit")  # fmt: skip
  fit.usage = "ilya-jax fit TABLE|SWEEP_DIR [TABLE|SWEEP_DIR ...] --out DIR [options]"
  fit.add_argument("inputs", nargs="+", metavar="TABLE|SWEEP_DIR", type=Path)
  fit.add_argument("--out", metavar="DIR", type=Path, help="folder of fit.json, report.html and figures")
  fit.add_argument("--form", default="auto", help="auto, or names joined by commas")
  fit.add_argument("--objective", default="huber", help="huber (sum, of log residuals), lad, lsq_log or lsq")
  fit.add_argument("--delta", type=float, default=1e-3, help="of the Huber objective (default 1e-3)")
  fit.add_argument("--columns", default="", metavar="N=…,D=…", help="names of the columns in the table")
  fit.add_argument("--units", default="", metavar="N=1e6,…", help="what one unit of a column is")
  fit.add_argument(
    "--drop-highest", type=int, default=0, metavar="K", help="keep rows with loss below the K-th highest"
  )
  fit.add_argument("--where", action="append", default=[], metavar="'C<1e21'", help="keep rows for which this holds")
  fit.add_argument("--final-only", action="store_true", help="keep rows with final = 1")
  fit.add_argument("--hold-out", default="none", metavar="largest-compute|K|none", help="rows that grade the fits")
  fit.add_argument("--cluster", default="", metavar="COLUMN", help="resampling unit (default trunk, else cell)")
  fit.add_argument("--bootstrap", type=int, default=1000, help="resamples; 0: none")
  fit.add_argument("--seed", type=int, default=0)
  fit.add_argument("--starts", type=int, default=64, help="starts of each optimisation")
  fit.add_argument("--isoflop", action="store_true", help="valleys of equal compute: best sizes by five methods")
  fit.add_argument(
    "--critical-batch", action="store_true", help="B_crit from runs at several batch sizes; C_min, S_min"
  )
  fit.add_argument("--batch-targets", default="", metavar="2.0,1.8", help="losses at which steps are compared")
  fit.add_argument("--predict", action="append", default=[], metavar="'N=1e9,D=2e10'")
  fit.add_argument("--target-compute", action="append", default=[], type=float, metavar="FLOP")
  fit.add_argument("--formats", default="html,json,svg,png")


def _add_plan(commands: Any) -> None:
  plan = _add(commands, "plan", run=_plan, summary="compile the step for a TPU slice that is not there: memory, time, fits or not",
              example="ilya-jax plan --config configs/transformer_lm.py:1b --topology v5p:4x4x4 --config.mesh.stage=4")  # fmt: skip
  plan.add_argument("--config", metavar="PATH[:VARIANT]", help="a config file; --config.FIELD=VALUE changes a field")
  plan.add_argument(
    "--topology", metavar="CHIP:AxBxC", help="v4, v5e, v5p or v6e and the shape of the slice, as v5e:4x4"
  )
  plan.add_argument("--search", action="store_true", help="rank all meshes by formula, compile the best three")
  plan.add_argument(
    "--tokens", type=float, default=0.0, metavar="D", help="to give the days for (default: the config's steps)"
  )
  plan.add_argument("--record", action="store_true", help="write the figures to experiments/results/plans.json")


def _add_claims(commands: Any) -> None:
  listing = _add(
    commands, "list", run=_list, summary="the 26 readings, their claims and verdicts", example="ilya-jax list"
  )
  listing.add_argument("--json", action="store_true", help="as JSON")
  reproduce = _add(commands, "reproduce", run=_reproduce, summary="measure the claims of a reading beside the published numbers",
                   example="ilya-jax reproduce lstm --claim gradient_against_lag --scale small")  # fmt: skip
  reproduce.add_argument("reading", metavar="READING", help="an id of `ilya-jax list`")
  reproduce.add_argument("--claim", metavar="ID", help="one of them (default all)")
  reproduce.add_argument("--scale", default="tiny", metavar="tiny|small|paper", help="default tiny: seconds")
  reproduce.add_argument("--seeds", metavar="0,1,2", help="default: the claim's own")
  reproduce.add_argument(
    "--record", action="store_true", help="keep the evidence in experiments/results, and in README"
  )
  reproduce.add_argument(
    "--workdir", metavar="DIR", type=Path, help="for runs and figures (default runs/reproduce/READING)"
  )
  evaluation = _add(commands, "eval", run=_eval, summary="evaluate a run on its held-out sets, or on other data",
                    example="ilya-jax eval --workdir runs/a --config.data.name=shakespeare")  # fmt: skip
  evaluation.add_argument("--workdir", metavar="DIR", type=Path, help="folder of the run")
  evaluation.add_argument(
    "--average", type=int, default=1, metavar="K", help="mean of the last K checkpoints (default 1)"
  )
  sample = _add(commands, "sample", run=_sample, summary="text from a language model, or a translation",
                example="ilya-jax sample --workdir runs/tiny --prompt 'def main(' --temperature 0.8 --top-k 40")  # fmt: skip
  sample.add_argument("--workdir", metavar="DIR", type=Path, help="folder of the run")
  sample.add_argument(
    "--prompt", metavar="TEXT", help="where the text begins (default: a document), or what to translate"
  )
  sample.add_argument("--length", type=int, metavar="N", help="tokens at most (default 200)")
  sample.add_argument("--temperature", type=float, metavar="X", help="default 1; 0: the likeliest token always")
  sample.add_argument("--top-k", type=int, metavar="K", help="draw from the K likeliest tokens (default 0: from all)")
  sample.add_argument("--seed", type=int, help="default 0")
  sample.add_argument("--average", type=int, default=1, metavar="K", help="mean of the last K checkpoints (default 1)")


def _split_overrides(arguments: Sequence[str]) -> tuple[list[str], dict[str, str]]:
  """The arguments without `--config.FIELD=VALUE` (or `--config.FIELD VALUE`), and those as a dict."""
  rest, overrides = [], {}
  pending = iter(arguments)
  for argument in pending:
    if argument.startswith("--config."):
      field, equals, value = argument.removeprefix("--config.").partition("=")
      following = value if equals else next(pending, None)
      if following is None:
        raise UserError(f"{argument} without a value", "--config.FIELD=VALUE", argument)
      overrides[field] = following
    else:
      rest.append(argument)
  return rest, overrides


def _need(arguments: Any, *names: str) -> None:
  for name in names:
    if getattr(arguments, name) is None:
      forms = {"config": "PATH[:VARIANT]", "topology": "CHIP:AxBxC"}
      raise UserError(f"no --{name}", f"--{name} {forms.get(name, 'DIR')}", f"--{name}")


def _start_processes(arguments: Any, *, batch_size: int = 0) -> None:
  """Checks the flags of several processes, prepares the devices for a batch, and joins the others where there are any."""
  from ilya_jax.parallel import distributed
  from ilya_jax.parallel.devices import prepare_devices, split_cpu, use_compilation_cache

  flags = {"coordinator": arguments.coordinator, "processes": arguments.num_processes, "index": arguments.process_id}
  distributed.check_flags(**flags)
  prepare_devices()
  if batch_size:  # a sweep's workers split the CPU themselves
    split_cpu(batch_size)
  use_compilation_cache()
  distributed.start(**flags, heartbeat_s=arguments.heartbeat)


def _train(arguments: Any) -> int:
  from ilya_jax.config import load_config
  from ilya_jax.parallel import distributed

  _need(arguments, "config", "workdir")
  config = load_config(arguments.config, arguments.overrides)
  _start_processes(arguments, batch_size=config.batch_size // config.accumulate)
  from ilya_jax.train.loop import train

  with distributed.ending_together():
    result = train(config, arguments.workdir)
  if not distributed.is_first():
    return 0
  scores = "  ".join(
    f"{split}: " + " ".join(f"{name} {value:.4f}" for name, value in means.items())
    for split, means in result.evaluations.items()
  )
  print(f"run {result.run} done at step {result.step}  {scores}\n{arguments.workdir}")
  return 0


def _sweep(arguments: Any) -> int:
  from ilya_jax.parallel import distributed
  from ilya_jax.scaling import command

  _need(arguments, "workdir")
  _start_processes(arguments)
  with distributed.ending_together():
    return command.sweep(arguments.sweep, arguments.workdir, overrides=arguments.overrides, only=arguments.only,
                         workers=arguments.workers, pack=arguments.pack, dry_run=arguments.dry_run,
                         launcher=arguments.launcher, launcher_options=arguments.launcher_option)  # fmt: skip


def _status(arguments: Any) -> int:
  from ilya_jax.scaling import command

  return command.status(arguments.dir, retry_failed=arguments.retry_failed)


def _fit(arguments: Any) -> int:
  from ilya_jax.scaling import command

  _need(arguments, "out")
  return command.fit(arguments)


def _plan(arguments: Any) -> int:
  import jax

  jax.config.update("jax_platforms", "cpu")  # the TPU's compiler needs no TPU, and nothing else here one either
  from ilya_jax.train.plan import plan

  _need(arguments, "config", "topology")
  plan(arguments.config, arguments.overrides, topology=arguments.topology, search=arguments.search,
       tokens=arguments.tokens, record=arguments.record, command=shlex.join(["ilya-jax", *arguments.from_shell]))  # fmt: skip
  return 0


def _list(arguments: Any) -> int:
  from ilya_jax.claims import command

  return command.list_readings(as_json=arguments.json)


def _reproduce(arguments: Any) -> int:
  from ilya_jax.claims import command
  from ilya_jax.parallel.devices import prepare_devices, use_compilation_cache

  prepare_devices()
  use_compilation_cache()
  return command.reproduce(
    arguments.reading, claim=arguments.claim, scale=arguments.scale, seeds=arguments.seeds, record=arguments.record,
    workdir=arguments.workdir, command=shlex.join(["ilya-jax", *arguments.from_shell]),
  )  # fmt: skip


def _eval(arguments: Any) -> int:
  from ilya_jax.parallel.devices import prepare_devices, use_compilation_cache

  _need(arguments, "workdir")
  prepare_devices()
  use_compilation_cache()
  from ilya_jax.train.load import load_run

  loaded = load_run(arguments.workdir, arguments.overrides, average=arguments.average)
  for split in loaded.source.eval_batches:
    means = {**loaded.evaluate(split), **loaded.scores(split)}
    print(f"{split}: " + " ".join(f"{name} {value:.4f}" for name, value in means.items()))
  return 0


def _sample(arguments: Any) -> int:
  from ilya_jax.parallel.devices import prepare_devices, use_compilation_cache

  _need(arguments, "workdir")
  prepare_devices()
  use_compilation_cache()
  from ilya_jax.train.load import load_run

  loaded = load_run(arguments.workdir, arguments.overrides, average=arguments.average)
  continue_text = loaded.task.continue_text
  if continue_text is None:
    raise UserError(f"a run of the task {loaded.config.task!r}", "a run that writes text, as of language", "--workdir")
  options = {name: getattr(arguments, name) for name in ("length", "temperature", "top_k", "seed")}
  print(continue_text(loaded.params, arguments.prompt or "", options=options))
  return 0


def main(arguments: Sequence[str] | None = None) -> int:
  """Runs one command; returns its exit code."""
  logging.getLogger("absl").setLevel(logging.CRITICAL)  # Orbax logs what it also raises
  from_shell = list(sys.argv[1:] if arguments is None else arguments)
  try:
    rest, overrides = _split_overrides(from_shell)
    parser = make_parser()
    names = list(next(a for a in parser._actions if isinstance(a, argparse._SubParsersAction)).choices)
    if not rest or (not rest[0].startswith("-") and rest[0] not in names):
      hint = did_you_mean(rest[0], names) if rest else ""
      raise UserError(
        f"command {rest[0]!r}{hint}" if rest else "no command", f"one of {', '.join(names)}", "ilya-jax COMMAND"
      )
    parsed = parser.parse_args(rest)
    parsed.overrides = overrides
    parsed.from_shell = from_shell
    if overrides and parsed.command not in ("train", "sweep", "plan", "eval", "sample"):
      raise UserError(
        f"--config.{next(iter(overrides))}",
        f"no config fields with {parsed.command}",
        f"--config.{next(iter(overrides))}",
      )
    return parsed.run(parsed)
  except KeyboardInterrupt:
    return 130
  except UserError as error:
    return _end(error, 2)
  except RunFailed as error:
    return _end(error, 1)
  except Preempted as error:
    return _end(error, 128 + error.signum)
  except Exception as error:
    if isinstance(error, OSError) and error.errno in _NO_ROOM:
      return _end(error, 1)
    return _end(
      RuntimeError(f"{type(error).__name__}: {error}; a bug, ILYA_JAX_TRACEBACK=1 shows where"), 1, cause=error
    )


def _end(error: Exception, code: int, *, cause: Exception | None = None) -> int:
  if os.environ.get("ILYA_JAX_TRACEBACK") == "1":
    raise cause or error
  print(f"error: {' '.join(str(error).split())}", file=sys.stderr)
  return code


def run() -> NoReturn:
  """The console script: runs one command and ends the process with its exit code.

  After a save that failed, threads of Orbax wait for files that never come, for ten minutes; they are not waited for.
  """
  code = main()
  others = [thread for thread in threading.enumerate() if thread is not threading.main_thread() and not thread.daemon]
  if code == 1 and others:
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(code)
  sys.exit(code)


if __name__ == "__main__":
  run()

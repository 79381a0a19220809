"""The two ways a command ends badly: bad input (exit code 2) and a run that failed (exit code 1)."""


class UserError(Exception):
  """Bad input: one line saying what was got, what was expected, and the flag or field to change.

  Raised before anything is written or changed; the command line prints it as `error: …` and exits with 2.
  """

  def __init__(self, got: str, expected: str, change: str):
    super().__init__("; ".join(" ".join(part.split()) for part in (got, expected, change)))


class RunFailed(Exception):
  """A run that could not be finished (diverged, disk full, a cell failed): exit code 1, one line, where the log is."""

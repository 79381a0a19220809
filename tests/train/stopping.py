"""A stop that comes at a chosen moment of training."""

import signal

from ilya_jax.train.loop import Stop


class StopAt(Stop):
  """Raises its flag when the loop asks for the n-th time."""

  def __init__(self, calls):
    self._left, self._signum = calls, None

  @property
  def signum(self):
    self._left -= 1
    return signal.SIGTERM if self._left < 0 else None

  @signum.setter
  def signum(self, value):
    pass

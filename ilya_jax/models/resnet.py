"""Residual networks and their plain twins (He, Zhang, Ren, Sun 2015, https://arxiv.org/abs/1512.03385).

Implements eq. 1 and 2, figure 5 (the two units), table 1 (ImageNet family: 18, 34, 50, 101, 152), section 4.2 (CIFAR family:
6n + 2), and the shortcut options of section 4.1. B batch, H, W height and width, C channels.

A unit: y = relu(F(x) + shortcut(x)), F = conv, norm, relu, conv, norm (basic), or 1x1, 3x3, 1x1 (bottleneck, four times as wide at
its end). Convolutions have no bias, each is followed by a batch normalisation.

Where the shape changes the shortcut is, option A: every second pixel, zeros for the new channels; option B: a 1x1 convolution and
a norm; option C: that in every unit; "none": no shortcut at all, the plain net. A plain net and its option A twin have the same
parameters.

Deviations: the norm after a projection is not spelt out in the paper; all known code has it. The head is drawn from He's normal
as every other layer (the paper does not say), its bias is 0. `stride_at` 3x3 puts a bottleneck's stride into its middle convolution,
as torchvision does; the paper has it in the first.
"""

from collections.abc import Iterator
from typing import Any, NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp
from jax import lax
from jax.sharding import PartitionSpec

from ilya_jax.errors import UserError, check_positive
from ilya_jax.nn.batch_norm import BatchNorm
from ilya_jax.nn.convolution import Conv, he_normal
from ilya_jax.nn.linear import Linear
from ilya_jax.nn.precision import at_least_float32
from ilya_jax.task import Counts, Layer

SHORTCUTS = ("A", "B", "C", "none")
IMAGENET = {  # table 1: depth -> (units of each stage, whether they are bottlenecks)
  18: ((2, 2, 2, 2), False),
  34: ((3, 4, 6, 3), False),
  50: ((3, 4, 6, 3), True),
  101: ((3, 4, 23, 3), True),
  152: ((3, 8, 36, 3), True),
}
EXPANSION = 4  # of a bottleneck: width of its end over that of its middle

# Output channels over `tensor`, input channels over `fsdp`.
RULES = (
  (r"(conv\d|projection)/kernel", PartitionSpec(None, None, "fsdp", "tensor")),  # [h, w, I, O]
  (r"head/linear/kernel", PartitionSpec("fsdp", "tensor")),  # [C, classes]
)


class Stem(nn.Module):
  """What comes before the units: 3x3 at full size (CIFAR), or 7x7 with stride 2 and a 3x3 max pool with stride 2 (ImageNet)."""

  features: int
  imagenet: bool
  dtype: jnp.dtype

  @nn.compact
  def __call__(self, x: jax.Array, *, train: bool) -> jax.Array:
    """x [B, H, W, C] -> [B, H, W, features] or [B, H / 4, W / 4, features]."""
    size, stride = (7, 2) if self.imagenet else (3, 1)
    x = Conv(self.features, size, stride, padding=size // 2, dtype=self.dtype, name="conv1")(x)
    x = nn.relu(BatchNorm(dtype=self.dtype, name="norm1")(x, train=train))
    if not self.imagenet:
      return x
    lowest = jnp.array(-jnp.inf, x.dtype)
    return lax.reduce_window(x, lowest, lax.max, (1, 3, 3, 1), (1, 2, 2, 1), ((0, 0), (1, 1), (1, 1), (0, 0)))


class Unit(nn.Module):
  """Two 3x3 convolutions, or a bottleneck of three, with their shortcut (figure 5).

  features: channels of its output. stride: of its first convolution (`stride_at` 1x1; of its 3x3 one otherwise).
  """

  features: int
  stride: int
  bottleneck: bool
  shortcut: str
  stride_at: str
  dtype: jnp.dtype

  @nn.compact
  def __call__(self, x: jax.Array, *, train: bool) -> jax.Array:
    """x [B, H, W, C] -> [B, H / stride, W / stride, features]."""
    y, convolutions = x, self.convolutions()
    for k, (features, size, stride) in enumerate(convolutions, start=1):
      y = Conv(features, size, stride, padding=size // 2, dtype=self.dtype, name=f"conv{k}")(y)
      y = BatchNorm(dtype=self.dtype, name=f"norm{k}")(y, train=train)
      y = nn.relu(y) if k < len(convolutions) else y
    if self.shortcut == "none":
      return nn.relu(y)
    if projects(self, x.shape[-1]):
      x = Conv(self.features, 1, self.stride, dtype=self.dtype, name="projection")(x)
      x = BatchNorm(dtype=self.dtype, name="projection_norm")(x, train=train)
    else:
      x = identity(x, features=self.features, stride=self.stride)
    return nn.relu(y + x)

  def convolutions(self) -> list[tuple[int, int, int]]:
    """(features, size, stride) of the residual branch's convolutions."""
    if not self.bottleneck:
      return [(self.features, 3, self.stride), (self.features, 3, 1)]
    inner = self.features // EXPANSION
    first, middle = (self.stride, 1) if self.stride_at == "1x1" else (1, self.stride)
    return [(inner, 1, first), (inner, 3, middle), (self.features, 1, 1)]


def projects(unit: Unit, channels: int) -> bool:
  """Whether the shortcut of a unit that reads so many channels is a projection."""
  changes = unit.stride > 1 or unit.features != channels
  return unit.shortcut == "C" or (unit.shortcut == "B" and changes)


def identity(x: jax.Array, *, features: int, stride: int) -> jax.Array:
  """Option A: every `stride`-th pixel of x [B, H, W, C], and zeros for the channels that are missing of `features`."""
  return jnp.pad(x[:, ::stride, ::stride], ((0, 0), (0, 0), (0, 0), (0, features - x.shape[-1])))


class Head(nn.Module):
  """The mean over all pixels, and a linear map onto the classes."""

  classes: int
  dtype: jnp.dtype

  @nn.compact
  def __call__(self, x: jax.Array, *, train: bool) -> jax.Array:
    """x [B, H, W, C] -> logits [B, classes], float32 at least."""
    pooled = at_least_float32(x).mean((1, 2)).astype(self.dtype)
    return at_least_float32(Linear((self.classes,), kernel_init=he_normal, dtype=self.dtype, name="linear")(pooled))


class ResNet(nn.Module):
  """units: how many in each stage; width: channels of the first stage (of a bottleneck's middle), doubled from stage to stage.

  Raises UserError on a shortcut or stride position that does not exist, and sizes below 1.
  """

  units: tuple[int, ...]
  width: int
  classes: int
  bottleneck: bool = False
  imagenet: bool = False
  shortcut: str = "A"
  stride_at: str = "1x1"
  dtype: jnp.dtype = jnp.float32

  def __post_init__(self):
    _check(self)
    super().__post_init__()

  @nn.compact
  def __call__(self, x: jax.Array, *, train: bool) -> jax.Array:
    """x [B, H, W, C] -> logits [B, classes]; `train` takes the batch's statistics and moves their averages."""
    for module in members(self):
      x = module(x, train=train)
    return x


def members(model: ResNet) -> Iterator[Any]:
  """The modules of the net, in turn, each with its name."""
  yield Stem(model.width, model.imagenet, model.dtype, name="stem")
  for stage, count in enumerate(model.units):
    features = model.width * 2**stage * (EXPANSION if model.bottleneck else 1)
    for k in range(count):
      stride = 2 if stage and not k else 1
      name = f"stage{stage + 1}_unit{k + 1}"
      yield Unit(features, stride, model.bottleneck, model.shortcut, model.stride_at, model.dtype, name=name)
  yield Head(model.classes, model.dtype, name="head")


def layers(model: ResNet) -> tuple[Layer, ...]:
  """The net as a list that a pipeline may cut: the stem, each unit, the head."""

  def layer(module):
    def apply(params, state, x, rng, *, train):
      variables = {"params": params, **state}
      if not train or not state:
        return module.apply(variables, x, train=train), state
      x, new = module.apply(variables, x, train=True, mutable=list(state))
      return x, dict(new)

    return Layer(module.name, apply)

  return tuple(layer(module) for module in members(model))


def from_config(config: Any, *, classes: int) -> ResNet:
  """The net of `config.model`: family "cifar" (depth 6n + 2) or "imagenet" (a depth of table 1).

  Raises UserError where there is no such net.
  """
  model = config.model
  if model.family == "cifar":
    if model.depth < 8 or model.depth % 6 != 2:
      raise UserError(f"model.depth = {model.depth}", "6n + 2: 8, 20, 32, 44, 56, 110, 1202", "--config.model.depth")
    units: tuple[int, ...] = ((model.depth - 2) // 6,) * 3
    bottleneck = False
  elif model.family == "imagenet":
    if model.depth not in IMAGENET:
      raise UserError(f"model.depth = {model.depth}", f"one of {', '.join(map(str, IMAGENET))}", "--config.model.depth")
    units, bottleneck = IMAGENET[model.depth]
  else:
    raise UserError(f"model.family = {model.family!r}", "cifar or imagenet", "--config.model.family")
  return ResNet(
    units=units, width=model.width, classes=classes, bottleneck=bottleneck, imagenet=model.family == "imagenet",
    shortcut=model.shortcut, stride_at=model.stride_at, dtype=jnp.dtype(config.dtype),
  )  # fmt: skip


class ResNetCounts(NamedTuple):
  """Parameters of the convolutions, of the norms (scale and bias), of the head; multiply-adds of a forward pass of one image,
  of convolutions and head, all taps counted at the edges too."""

  convolutions: int
  norms: int
  head: int
  multiply_adds: int

  @property
  def total(self) -> int:
    """All parameters."""
    return self.convolutions + self.norms + self.head


def count(model: ResNet, *, side: int, channels: int) -> ResNetCounts:
  """The counts of a net on images of `side` x `side` pixels."""
  weights, norms, products = 0, 0, 0

  def convolution(inputs, features, size, side):
    nonlocal weights, norms, products
    weights += size * size * inputs * features
    norms += 2 * features
    products += size * size * inputs * features * side * side

  for module in members(model):
    if isinstance(module, Stem):
      side = -(-side // 2) if model.imagenet else side
      convolution(channels, module.features, 7 if model.imagenet else 3, side)
      side = -(-side // 2) if model.imagenet else side
      channels = module.features
    elif isinstance(module, Unit):
      inputs, inner = channels, side
      for features, size, stride in module.convolutions():
        inner = -(-inner // stride)
        convolution(inputs, features, size, inner)
        inputs = features
      if module.shortcut != "none" and projects(module, channels):
        convolution(channels, module.features, 1, inner)
      channels, side = module.features, inner
  head = (channels + 1) * model.classes
  return ResNetCounts(weights, norms, head, products + channels * model.classes)


def counts(config: Any, *, shape: tuple[int, int, int], classes: int) -> Counts:
  """Size and training cost of the net of `config` on images of `shape` (H, W, C), by formula.

  n: weights of the convolutions and of the head. A forward pass costs 2 FLOP a multiply-add, training three times that.
  """
  model = from_config(config, classes=classes)
  counted = count(model, side=shape[0], channels=shape[2])
  return Counts(
    n=counted.convolutions + counted.head - classes, n_total=counted.total, flops_per_unit=6.0 * counted.multiply_adds,
    units_per_step=config.batch_size, unit="examples",
  )  # fmt: skip


def _check(model: ResNet) -> None:
  for field, known in (("shortcut", SHORTCUTS), ("stride_at", ("1x1", "3x3"))):
    if getattr(model, field) not in known:
      raise UserError(
        f"model.{field} = {getattr(model, field)!r}", f"one of {', '.join(known)}", f"--config.model.{field}"
      )
  check_positive(model, "width", "classes")

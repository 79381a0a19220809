"""ResNet against torch: the ImageNet family against transformers, training of the CIFAR family against torch's modules."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from ilya_jax.models import resnet
from ilya_jax.models.resnet import ResNet
from ilya_jax.parallel.layers import in_turn
from ilya_jax.task import Source
from ilya_jax.tasks.classify import make_layers

torch = pytest.importorskip("torch")


def moved(variables, seed=3):
  """Variables with norms and moving averages that are not those of the start."""
  rng = np.random.default_rng(seed)

  def change(path, leaf):
    name = path[-1].key
    if name == "kernel":
      return leaf
    noise = rng.normal(size=leaf.shape)
    return jnp.asarray(np.exp(0.3 * noise) if name in ("scale", "var") else 0.3 * noise, leaf.dtype)

  return jax.tree_util.tree_map_with_path(change, variables)


def torch_state(variables, names):
  """Our variables under torch's names, for names ours -> theirs: OIHW kernels, running statistics."""
  params, state, made = variables["params"], variables["batch_stats"], {}

  def put(name, array):
    made[name] = torch.tensor(np.asarray(array))

  for ours, theirs in names.items():
    own, stats = params, state
    for part in ours.split("/"):
      own, stats = own[part], stats.get(part, {})
    if "scale" in own:
      for name, array in (("weight", own["scale"]), ("bias", own["bias"]), ("running_mean", stats["mean"]),
                          ("running_var", stats["var"])):  # fmt: skip
        put(f"{theirs}.{name}", array)
    elif own["kernel"].ndim == 4:
      put(f"{theirs}.weight", own["kernel"].transpose(3, 2, 0, 1))
    else:
      put(f"{theirs}.weight", own["kernel"].T)
      put(f"{theirs}.bias", own["bias"])
  return made


def names_in_transformers(model):
  """Ours -> those of transformers' ResNetForImageClassification."""
  names = {"stem/conv1": "resnet.embedder.embedder.convolution", "stem/norm1": "resnet.embedder.embedder.normalization",
           "head/linear": "classifier.1"}  # fmt: skip
  for stage, units in enumerate(model.units):
    for k in range(units):
      ours, theirs = f"stage{stage + 1}_unit{k + 1}", f"resnet.encoder.stages.{stage}.layers.{k}"
      for j in range(3 if model.bottleneck else 2):
        names[f"{ours}/conv{j + 1}"] = f"{theirs}.layer.{j}.convolution"
        names[f"{ours}/norm{j + 1}"] = f"{theirs}.layer.{j}.normalization"
      if k == 0 and (stage > 0 or model.bottleneck):
        names[f"{ours}/projection"] = f"{theirs}.shortcut.convolution"
        names[f"{ours}/projection_norm"] = f"{theirs}.shortcut.normalization"
  return names


@pytest.mark.parametrize(("bottleneck", "stride_at"), [(False, "1x1"), (True, "1x1"), (True, "3x3")])
def test_nets_of_the_imagenet_family_are_those_of_transformers(bottleneck, stride_at):
  """Both units, the stem, its pool, projections and strides, in nets of fewer units and channels than table 1 has."""
  transformers = pytest.importorskip("transformers")
  model = ResNet((2, 1, 2, 1), 8, 1000, bottleneck, imagenet=True, shortcut="B", stride_at=stride_at)
  images = np.random.default_rng(4).normal(size=(2, 64, 64, 3)).astype(np.float32)
  variables = moved(jax.jit(functools.partial(model.init, train=False))(jax.random.key(0), images))
  widths = [8 * 2**stage * (4 if model.bottleneck else 1) for stage in range(4)]
  theirs = transformers.ResNetForImageClassification(
    transformers.ResNetConfig(
      embedding_size=8, hidden_sizes=widths, depths=list(model.units), num_labels=1000,
      layer_type="bottleneck" if model.bottleneck else "basic", downsample_in_bottleneck=stride_at == "1x1",
    )
  ).eval()  # fmt: skip
  found = theirs.load_state_dict(torch_state(variables, names_in_transformers(model)), strict=False)
  assert not found.unexpected_keys
  assert all("num_batches_tracked" in name for name in found.missing_keys)
  with torch.no_grad():
    wanted = theirs(torch.tensor(images.transpose(0, 3, 1, 2))).logits.numpy()
  got = np.asarray(jax.jit(functools.partial(model.apply, train=False))(variables, images))
  assert np.abs(wanted).max() > 0.5
  np.testing.assert_allclose(got, wanted, atol=1e-4 * np.abs(wanted).max(), rtol=0)


def torch_cifar(model):
  """The CIFAR net of torch's own modules, with option A, B, C or none."""
  from torch import nn

  class Block(nn.Module):
    def __init__(self, inputs, features, stride):
      super().__init__()
      self.conv1 = nn.Conv2d(inputs, features, 3, stride, 1, bias=False)
      self.norm1 = nn.BatchNorm2d(features)
      self.conv2 = nn.Conv2d(features, features, 3, 1, 1, bias=False)
      self.norm2 = nn.BatchNorm2d(features)
      self.stride, self.missing = stride, features - inputs
      if model.shortcut == "C" or (model.shortcut == "B" and stride > 1):
        self.projection = nn.Conv2d(inputs, features, 1, stride, bias=False)
        self.projection_norm = nn.BatchNorm2d(features)

    def forward(self, x):
      y = self.norm2(self.conv2(torch.relu(self.norm1(self.conv1(x)))))
      if model.shortcut == "none":
        return torch.relu(y)
      if hasattr(self, "projection"):
        x = self.projection_norm(self.projection(x))
      else:
        x = nn.functional.pad(x[:, :, :: self.stride, :: self.stride], (0, 0, 0, 0, 0, self.missing))
      return torch.relu(y + x)

  class Net(nn.Module):
    def __init__(self):
      super().__init__()
      self.conv1, self.norm1 = nn.Conv2d(3, model.width, 3, 1, 1, bias=False), nn.BatchNorm2d(model.width)
      inputs = model.width
      for stage, units in enumerate(model.units):
        features = model.width * 2**stage
        for k in range(units):
          self.add_module(f"stage{stage + 1}_unit{k + 1}", Block(inputs, features, 2 if stage and not k else 1))
          inputs = features
      self.linear = nn.Linear(inputs, model.classes)

    def forward(self, x):
      x = torch.relu(self.norm1(self.conv1(x)))
      for name, block in self.named_children():
        x = block(x) if "unit" in name else x
      return self.linear(x.mean((2, 3)))

  return Net()


def names_in_torch(variables):
  names = {"stem/conv1": "conv1", "stem/norm1": "norm1", "head/linear": "linear"}
  units = {name: own for name, own in variables["params"].items() if "unit" in name}
  return names | {f"{unit}/{part}": f"{unit}.{part}" for unit, own in units.items() for part in own}


@pytest.mark.parametrize("shortcut", ["A", "B", "C", "none"])
def test_training_of_the_cifar_net_is_torchs(shortcut):
  """Loss, every gradient, and the moving averages of a step in training mode."""
  model = ResNet((1, 1, 1), 8, 10, shortcut=shortcut)
  rng = np.random.default_rng(5)
  images, labels = rng.normal(size=(6, 16, 16, 3)).astype(np.float32), rng.integers(10, size=6).astype(np.int32)
  variables = moved(model.init(jax.random.key(0), images, train=False))
  theirs = torch_cifar(model)
  names = names_in_torch(variables)
  theirs.load_state_dict(torch_state(variables, names), strict=False)
  loss = torch.nn.functional.cross_entropy(
    theirs.train()(torch.tensor(images.transpose(0, 3, 1, 2))), torch.tensor(labels, dtype=torch.long)
  )
  loss.backward()

  layers = make_layers(
    resnet.layers(model),
    source=Source(None, {}, {"mean": np.zeros((1, 1, 1), np.float32), "std": 1.0}),
    pad=0,
    flip=False,
  )
  step = jax.jit(jax.value_and_grad(functools.partial(in_turn(layers), train=True), has_aux=True))
  batch = {"image": jnp.asarray(images), "label": jnp.asarray(labels)}
  state = {"batch_stats": variables["batch_stats"]}
  (value, (_, new)), grads = step(variables["params"], state, batch, jax.random.key(0))
  assert float(value) == pytest.approx(loss.item(), rel=1e-5)

  ours = torch_state({"params": grads, **new}, names)
  after = dict(theirs.named_parameters()) | dict(theirs.named_buffers())
  for name, array in ours.items():
    if "running" not in name:
      wanted = after[name].grad
    elif name.endswith("var"):  # torch's is of the unbiased variance, n / (n - 1) times ours
      before = torch_state(variables, names)[name]
      n = 6 * {"stage2": 64, "stage3": 16}.get(name[:6], 256)
      wanted = 0.9 * before + (after[name] - 0.9 * before) * (n - 1) / n
    else:
      wanted = after[name]
    np.testing.assert_allclose(array, wanted, atol=1e-4 * max(float(wanted.abs().max()), 1e-2), rtol=0, err_msg=name)

"""The import arrows of the design, read off the files: who may import whom."""

import ast
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
PACKAGE = ROOT / "ilya_jax"

# Folder or file -> what of ilya_jax it may import (besides itself, errors and task). "*": anything of the package.
ALLOWED = {
  "errors": set(),
  "task": set(),
  "config": set(),
  "cache": set(),
  "nn": {"scaling.counting"},
  "models": {"nn", "scaling.counting"},
  "data": set(),
  "parallel": set(),
  "complexity": set(),
  "tasks": {"models", "nn", "data", "config", "parallel.layers", "scaling.counting"},
  "train": {"tasks", "data", "parallel", "config"},
  "scaling": {"train", "parallel", "config", "data"},
  "claims": {"train", "scaling", "config", "parallel"},
  "cli": {"*"},
}
PURE = (
  "laws", "equations", "fit", "uncertainty", "profile", "optimal", "allocation", "table", "newton", "objectives", "starts",
  "search", "rows", "counting", "sensitivity", "fitted", "fitting", "critical_batch", "batch_laws", "hyperbola",
  "steps_to_loss", "noise_scale",
)  # fmt: skip  # of scaling: no flax, no optax, no train
FORBIDDEN_IN_PURE = {"flax", "optax", "orbax", "ml_collections", "ilya_jax.train", "ilya_jax.models", "ilya_jax.tasks"}


def imports_of(path):
  """Dotted names imported anywhere in a file."""
  for node in ast.walk(ast.parse(path.read_text())):
    if isinstance(node, ast.Import):
      yield from (alias.name for alias in node.names)
    elif isinstance(node, ast.ImportFrom):
      assert node.level == 0, f"{path}: relative import"
      yield node.module
      yield from (f"{node.module}.{alias.name}" for alias in node.names)


def files():
  return sorted(PACKAGE.rglob("*.py"))


@pytest.mark.parametrize("path", files(), ids=lambda path: str(path.relative_to(ROOT)))
def test_the_arrows_hold(path):
  place = path.relative_to(PACKAGE).with_suffix("").parts
  owner = place[0]
  if owner == "__init__":
    return
  for name in imports_of(path):
    head, _, rest = name.partition(".")
    assert head not in ("experiments", "configs", "tests"), f"{path} imports {name}"
    if head != "ilya_jax" or not rest:
      continue
    target = rest.split(".")[0]
    allowed = ALLOWED[owner]
    if target in (owner, "errors", "task", "cache", "__version__") or "*" in allowed or target in allowed:
      continue
    assert any(rest.startswith(prefix) for prefix in allowed if "." in prefix) or rest == "scaling", (
      f"{path} imports {name}"
    )


@pytest.mark.parametrize("path", files(), ids=lambda path: str(path.relative_to(ROOT)))
def test_laws_and_complexity_stand_alone(path):
  place = path.relative_to(PACKAGE).with_suffix("").parts
  if place[0] == "complexity" or (place[0] == "scaling" and place[-1] in PURE):
    for name in imports_of(path):
      assert not any(name == bad or name.startswith(f"{bad}.") for bad in FORBIDDEN_IN_PURE), f"{path} imports {name}"


def test_configs_import_nothing_of_the_package():
  for path in sorted((ROOT / "configs").rglob("*.py")):
    assert not any(name.split(".")[0] == "ilya_jax" for name in imports_of(path)), path


@pytest.mark.parametrize("path", files(), ids=lambda path: str(path.relative_to(ROOT)))
def test_every_file_opens_with_a_sentence(path):
  docstring = ast.get_docstring(ast.parse(path.read_text()))
  assert docstring
  assert docstring.splitlines()[0].rstrip().endswith((".", ":"))

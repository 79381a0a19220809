"""What tests of parity with torch do to its models."""


def randomised(model):
  """Every parameter of a torch model drawn anew, scales around 1."""
  import torch

  generator = torch.Generator().manual_seed(0)
  with torch.no_grad():
    for name, parameter in model.named_parameters():
      parameter.normal_(0.0, 0.2, generator=generator)
      if parameter.ndim == 1 and name.endswith("weight"):
        parameter.add_(1.0)
  return model.eval()

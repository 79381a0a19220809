"""Message passing networks on molecules: QM9 with the settings of the authors' code, and small sets whose answers are known.

Gilmer et al. 2017, https://arxiv.org/abs/1704.01212; the code's defaults: github.com/brain-research/mpnn.
Expected: "" with data.targets=('mu',), the paper: error ratio 0.30 after 3 million updates and a search over rates. The small sets,
in units of the target's deviation (a throw-away script, one seed): charges .07 (bonds alone .44), wiener .07.
"""

from ml_collections import ConfigDict

VARIANTS = ("", "tiny", "charges", "charges_bonds", "charges_pair", "charges_towers", "wiener")
COUNTS = {"tiny": (2_560, 2_777)}  # (N, N_total), as recorded when it was added
CONFORMANCE = {"data.train_examples": 64, "execution.steps_per_dispatch": 4}

_QM9 = {
  "message": "edge", "edges": "raw", "widths": (50, 50, 50, 50), "width": 50, "rounds": 6, "readout": "set2set",
  "process_steps": 12, "readout_width": 200,
}  # fmt: skip
_CHARGES = {
  "message": "edge", "edges": "raw", "widths": (32, 32), "width": 24, "rounds": 3, "readout": "set2set",
  "process_steps": 6, "readout_width": 64,
}  # fmt: skip
_BONDS = {**_CHARGES, "message": "ggnn", "edges": "bonds", "widths": (), "readout": "ggnn"}
_MODELS = {
  "": _QM9,
  "tiny": {**_CHARGES, "widths": (8,), "width": 8, "rounds": 2, "process_steps": 2, "readout_width": 16},
  "charges": _CHARGES,
  "charges_bonds": _BONDS,
  "charges_pair": {**_CHARGES, "message": "pair", "widths": (108, 108)},  # as many weights as `charges` has
  "charges_towers": {**_CHARGES, "width": 32, "towers": 4},
  "wiener": _BONDS,
}
_DATA = {"": ("qm9", 0), "tiny": ("pair", 1_000), "wiener": ("wiener", 4_000)}  # name, training molecules (0: all)
_RATES = {"": 1.3e-4, "tiny": 3e-3}
_STEPS = {"": 3_000_000, "tiny": 100}


def get_config(arg: str = "") -> ConfigDict:
  """The config of a variant."""
  name, train_examples = _DATA.get(arg, ("charges", 4_000))
  config = ConfigDict()
  config.task = "graph"
  config.steps = _STEPS.get(arg, 3_000)
  config.batch_size = 20

  config.data = ConfigDict()
  config.data.name = name  # charges, wiener, pair, qm9
  config.data.path = ""  # of qm9: the folder of its tables, "" for that of qm9pack
  config.data.train_examples = train_examples
  config.data.targets = ("mu",) if name == "qm9" else ()  # of qm9: one or more of its 13
  config.data.hydrogens = True  # of qm9: whether they are nodes

  config.model = ConfigDict({"towers": 1, "virtual_edges": False, "master_width": 0, **_MODELS[arg]})

  config.optim = ConfigDict()
  config.optim.name = "adam"
  config.optim.learning_rate = _RATES.get(arg, 1e-3)
  config.optim.clip_norm = 4.0
  config.optim.options = ConfigDict()

  config.schedule = ConfigDict()
  config.schedule.name = "constant"
  if not arg:
    config.schedule.name = "drops"
    config.schedule.options = ConfigDict({"at": (1 / 6, 1 / 3, 1 / 2, 2 / 3, 5 / 6), "factor": 0.5})

  config.execution = ConfigDict()
  config.execution.steps_per_dispatch = 16

  config.eval = ConfigDict()
  config.eval.every = 0 if arg == "tiny" else 20_000 if not arg else 500
  config.checkpoint = ConfigDict()
  config.checkpoint.every = 0 if arg else 20_000
  return config

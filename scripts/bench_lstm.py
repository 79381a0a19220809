"""Times one training step of LSTM language models at the sizes of the literature, ours against torch eager and torch.compile.

Zaremba, Sutskever, Vinyals 2014, https://arxiv.org/abs/1409.2329: 2 layers of width 200 (small) over 20 steps and of width 650
(medium) over 35, vocabulary 10,000, 20 sequences; and a character model of char-rnn's default size (2 layers of 128, 50
steps, 50 sequences, vocabulary 256). Contenders, rounds and printed lines are those of `scripts/bench lm`; dropout is off on both
sides, and our text is byte pairs of the standard library's source where the vocabulary is not 256.

  scripts/bench lstm [--presets zaremba_small,zaremba_medium,characters] [--contenders torch,torch_compile,ours,...]
"""

import bench_lm
from bench_lm import Preset

PRESETS = {
  "zaremba_small": Preset(layers=2, width=200, heads=0, context=20, batch=20, vocabulary=10_000),
  "zaremba_medium": Preset(layers=2, width=650, heads=0, context=35, batch=20, vocabulary=10_000),
  "characters": Preset(layers=2, width=128, heads=0, context=50, batch=50),
  "smoke": Preset(layers=1, width=16, heads=0, context=8, batch=4, vocabulary=300),
}
TIMED = ("zaremba_small", "zaremba_medium", "characters")

if __name__ == "__main__":
  bench_lm.main(description=__doc__, presets=PRESETS, timed=TIMED, script=__file__)

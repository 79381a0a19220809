"""THE training loop and what it stands on: state, optimizer, checkpoints, metrics, evaluation."""

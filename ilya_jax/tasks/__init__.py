"""Model and loss family made into a Task, with the Source it trains on; found by file name."""

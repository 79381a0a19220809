"""The mesh of devices and the rules that lay parameters over it."""

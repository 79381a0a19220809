"""Layers that at least two architectures use."""

"""Scaling laws: counting, laws, fits with intervals, sweeps, reports."""

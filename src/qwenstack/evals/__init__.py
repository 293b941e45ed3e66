"""Measurements of what a model can do; they know it by a protocol only."""

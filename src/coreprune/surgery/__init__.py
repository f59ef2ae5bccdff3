"""Tensor edits and their application. Gets indices and matrices, never asks why."""

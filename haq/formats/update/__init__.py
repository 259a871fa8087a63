"""Packets between networks: one network, a difference, or a family in one small file.

docs/updates.md describes the format byte by byte. Nothing here needs torch: arrays are numpy's, and
all that a decoder computes is integers, or float32 operations that IEEE 754 rounds in one way.
"""

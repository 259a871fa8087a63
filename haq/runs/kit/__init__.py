"""Kits: everything that has to be measured on somebody's device, and a profile from what was."""

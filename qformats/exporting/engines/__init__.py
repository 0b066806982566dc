"""Engines: who converts the slices of an export. This process does, or a cluster of machines."""

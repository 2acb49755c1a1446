"""Runs, comparisons, statistics and reports: the layer that may import all the others."""

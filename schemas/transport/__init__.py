"""Optimal transport between two measures."""

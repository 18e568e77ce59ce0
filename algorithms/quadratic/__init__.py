"""Gromov-Wasserstein: the quadratic objective of a plan, and the searches for its minima."""

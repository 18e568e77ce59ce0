"""Entropic transport: scaled kernels, marginals that give way, derivatives, streaming."""

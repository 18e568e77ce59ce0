"""Tissue slices: alignment of pairs by fused Gromov-Wasserstein transport."""

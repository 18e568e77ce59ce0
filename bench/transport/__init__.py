"""Benchmarks of the transport family."""

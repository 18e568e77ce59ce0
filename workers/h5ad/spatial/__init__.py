"""Annotated data of the spatial family."""

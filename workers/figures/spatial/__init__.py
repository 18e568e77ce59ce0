"""Pictures of the spatial family."""

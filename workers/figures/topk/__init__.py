"""Pictures of the relaxed k largest."""

"""Pictures of maps between spaces."""

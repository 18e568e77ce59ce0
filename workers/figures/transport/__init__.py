"""Pictures of the transport family."""

"""HTTP: the gateway in front of the queue."""

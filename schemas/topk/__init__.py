"""What is asked of the k largest of each row, relaxed."""

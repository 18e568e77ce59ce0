"""The k largest of each row, relaxed: sparse, exact, differentiable."""

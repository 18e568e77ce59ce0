"""The mathematics: pure functions of tensors that know nothing of the service around them."""

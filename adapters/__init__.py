"""The ports' real implementations. No adapter imports another; the two composition roots put them together."""

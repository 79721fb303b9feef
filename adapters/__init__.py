"""The ports' real implementations. No adapter imports another; entrypoints/container.py puts them together."""

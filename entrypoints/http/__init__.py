"""Cairn over HTTP: the gate and the application."""

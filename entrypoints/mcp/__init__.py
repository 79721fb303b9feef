"""Cairn over the Model Context Protocol."""

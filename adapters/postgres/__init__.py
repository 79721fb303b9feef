"""Cairn's storage on PostgreSQL 15 to 18."""

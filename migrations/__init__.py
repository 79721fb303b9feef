"""The database schema and how it came to be. Each revision spells out its own SQL and imports nothing of ours."""

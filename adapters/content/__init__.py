"""The author's files: read, checked, and shown as pages."""

"""The rules of Cairn, pure: no clock, no random source, no log, no driver; the standard library alone."""

"""Formats of weights files that no library reads as we need it."""

"""Profiles on disk: what one holds, how it is checked, where it lies."""

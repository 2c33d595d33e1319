"""Engines: they turn generation jobs into token events."""

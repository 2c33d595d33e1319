"""Steering inside stock vLLM: the plugin that its processes load, and what requests carry to it.

Nothing here is imported unless vLLM serves; `plans` and `prefix` alone do not need it.
"""

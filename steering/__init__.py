"""Activation steering of transformers models: vectors, plans, hooks, and how vectors are built."""

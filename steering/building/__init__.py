"""How steering vectors are built from preference pairs."""

"""Adapters: load a float model, list its units in execution order, call its network."""

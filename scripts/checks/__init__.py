"""Checks of the whole project: on a GPU, of its speed, of each shipped option, and of its tests (random mutants)."""

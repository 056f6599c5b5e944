"""How seconds and memory grow with the size of a problem: measure_growth.py, and a file for each kind of quantity."""

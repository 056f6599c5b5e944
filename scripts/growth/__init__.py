"""The quantities of bench_growth.py: how their files are made, and the work that is measured."""

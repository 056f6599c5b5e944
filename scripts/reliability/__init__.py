"""Kills, damage, full disks and random input: what a run survives, and what its checkpoints cost."""

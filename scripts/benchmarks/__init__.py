"""Speed of steps, loaders, start-up and whole runs, compared with other programs; measuring.py times and reports."""

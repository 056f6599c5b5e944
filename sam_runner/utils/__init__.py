"""Helpers without knowledge of experiments: errors, console, files, manifests, safe loading, seeds, hardware, signals.

Anything that knows a setting, a data set, a network or a run belongs to another folder. `errors`, `console`, `files`,
`manifest` and `signals` import no torch, and `safe_load` imports it late, because commands use them before the settings
are validated.

May import: nothing.
"""

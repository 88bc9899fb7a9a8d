"""The HTTP half: one process a core. Turns requests into uploads, and predictions into responses."""

"""The tasks: one module each. A task makes cases; it loads nothing."""

"""How good is a model at lengths beyond its trained window: tasks, settings, and their results."""

"""One module per command of ``pyselfextend``, each with a ``click.Command`` named ``command``."""

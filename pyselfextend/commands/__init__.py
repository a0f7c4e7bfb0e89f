"""One module per command of ``pyselfextend``, each with ``main(arguments) -> int``."""

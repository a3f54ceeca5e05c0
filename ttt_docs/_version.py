"""The version, once: pyproject.toml, memory files and `ttt-docs --version` take it from here."""

__version__ = "0.1.0"

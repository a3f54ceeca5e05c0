"""Read a long document once, keep what was learned in fast weights, ask it later."""

__version__ = "0.1.0"

"""Training of the initialization that reading starts from: outer loop, data, trainer, recipes."""

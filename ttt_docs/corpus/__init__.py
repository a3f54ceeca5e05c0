"""Many documents into one store of memories."""

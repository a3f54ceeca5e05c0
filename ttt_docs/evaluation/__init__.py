"""Measuring what a model gains by reading."""

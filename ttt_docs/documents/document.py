"""A document: its text, and spans that tell the page or chapter of any character."""

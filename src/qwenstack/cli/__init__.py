"""The command line: one module for each command; `app` puts them together. Nothing imports this package."""

"""The administration: a second application, on a port of its own, of which the first one knows nothing."""

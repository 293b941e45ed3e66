"""What travels over HTTP: request models, response shapes, and the translation to and from the words of `core`."""

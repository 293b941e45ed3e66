"""The HTTP endpoints: thin functions between a wire and the generation service."""

"""Words that everyone shares. Standard library only; imports nothing else of qwenstack."""

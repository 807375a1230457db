"""The routes, a file for each group; ``common`` is what they share."""

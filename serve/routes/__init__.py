"""The routes, one file for each group; ``common`` holds what they share."""

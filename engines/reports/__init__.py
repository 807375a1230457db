"""What was built, and where it differs: comparison with PyTorch, profiles by layer, inspection of engines."""

"""Export the stages as ONNX graphs, checked against PyTorch, into a bundle. Needs the ``export`` and ``cpu`` extras."""

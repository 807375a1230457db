"""The stages as ONNX graphs, checked against PyTorch, in a bundle. Needs the ``export`` and ``cpu`` extras."""

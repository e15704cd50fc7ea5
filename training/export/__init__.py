"""One ONNX file from a fitted forecaster, checked against it."""

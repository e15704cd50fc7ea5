"""The contents of the ONNX file, and a session that runs it."""

"""What the ONNX file holds, and a session that runs it."""

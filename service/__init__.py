"""tidecast, online: a Kafka worker that carries each series' recurrent state from reading to reading.

Nothing here imports torch, onnx or `tidecast.training`.
"""

"""tidecast, offline: fits a stateful recurrent forecaster and exports it as one ONNX graph. torch lives here."""

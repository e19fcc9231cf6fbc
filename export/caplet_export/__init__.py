"""caplet_export: train a Show, Attend and Tell captioner, convert it to ONNX, and prove that it says the same."""

import caplet  # noqa: F401  (before onnxruntime, whose telemetry it keeps off)

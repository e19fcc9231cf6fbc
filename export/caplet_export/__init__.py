"""caplet_export: train a Show, Attend and Tell captioner, convert it to ONNX, and prove that it says the same."""

"""Measurements of caplet and of what it is compared with; `benchmarks/README.md` says how to run and read them."""

import caplet  # noqa: F401  (imported before onnxruntime, whose telemetry it turns off)

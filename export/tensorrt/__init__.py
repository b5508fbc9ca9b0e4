"""TensorRT and TensorRT-RTX: profiles, building in a subprocess, building on first use, and running."""

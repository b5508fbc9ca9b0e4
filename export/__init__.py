"""Encoders as ONNX graphs and engines, their parity, and the runtime that loads them."""

"""Triton Inference Server: a model repository made of a bundle, and the server itself on this machine."""

"""Measurements: parity with reference tensors, speed and memory."""

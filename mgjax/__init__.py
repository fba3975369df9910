"""Matrix-Game 2.0 in JAX: stream, record and train interactive world models."""

__version__ = "0.1.0"

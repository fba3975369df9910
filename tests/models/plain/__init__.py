"""The released networks in plain numpy, written from the design page and from nothing of mgjax.

Float64, one stream, no caches, no batch: slow and easy to read. `W` is the released file's tensors by name, and what is
built follows from the names that are there. tests/models/test_plain.py holds these functions to the released code's own
tensors where they are on the machine, and tests/eval/test_parity.py holds mgjax to these functions everywhere.
"""

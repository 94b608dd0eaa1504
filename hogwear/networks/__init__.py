"""What networks are made of: the interface, layers, parameters in shared memory, precision, weights.
The architectures themselves are in model.py.
"""

"""Parts of networks: interface, layers, kernels, shared parameters, precision, pretrained weights.
The architectures are in model.py.
"""

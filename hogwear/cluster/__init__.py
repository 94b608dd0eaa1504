"""Several machines: which of them this is, and messages, sums and averages between them.
What is sent, and why, is decided in training.
"""

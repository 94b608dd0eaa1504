"""Several machines: who they are, and messages and averages between them.
What they send, and why, is decided in training.
"""

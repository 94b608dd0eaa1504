"""Train an image classifier on ordinary CPUs. The wings, from the ground up:
system, data, networks, evaluation, cluster, training, serving, commands.
Each imports only wings before it; `make lint` checks that.
"""

__version__ = "0.1.0"  # the only place: labels of images and everything else follow

"""Train an image classifier on ordinary CPUs. The wings, from the ground up:
system, data, networks, evaluation, cluster, training, commands.
Each imports only wings before it; `make lint` checks that.
"""

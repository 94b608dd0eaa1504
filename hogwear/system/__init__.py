"""What any program needs from its machine: CPUs, memory, worker processes, files, text, flags, errors.
Nothing here knows of photos, networks or training.
"""

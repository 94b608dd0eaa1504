"""What any program needs: CPUs and memory, worker processes, files, text, flags, errors.
Nothing here knows about photos, networks or training.
"""

"""The flags that all commands share, how train prepares a run, and the further commands:
python -m hogwear.commands.NAME. The three main ones are train.py, eval.py and infer.py.
"""

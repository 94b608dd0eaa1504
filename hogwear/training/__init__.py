"""How a network learns: Hogwild, the trainer, its state and checkpoint, the time budget.
What it learns from comes from data; what it is measured with, from evaluation.
"""

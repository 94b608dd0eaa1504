"""How a network learns: closed-form heads, Hogwild, the trainer, its state, checkpoint, budget.
Photos come from data, the network from networks, and validation figures from evaluation.
"""

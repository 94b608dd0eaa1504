"""How a network learns: closed form, Hogwild, the trainer and its state, checkpoint, time budget.
Photos come from data, the network from networks, and validation figures from evaluation.
"""

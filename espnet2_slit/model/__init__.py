"""The networks of the paper's figure: audio encoders, Q-Former, language model, losses.

May import `common`, `data` and `train`.
"""

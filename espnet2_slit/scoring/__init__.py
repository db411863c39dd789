"""From decoded files to scores, each with its protocol, interval and chance.

May import `common` and `data`; `metrics` inside imports nothing of ours.
"""

"""Scores of captions, retrieval, answers and labels, with intervals and protocol.

Pure functions of lists and arrays; they import nothing else of this package and can be
used, or lifted out, alone.
"""

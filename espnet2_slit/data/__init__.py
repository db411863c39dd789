"""From audio and tables to batches: Kaldi-style directories, feature cache, corpora.

May import `common`.
"""

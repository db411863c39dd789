"""ESPnet's training loop with what long runs need: schedule, resuming, whole files.

May import `common` and `data`.
"""

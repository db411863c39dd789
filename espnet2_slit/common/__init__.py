"""What every room uses: files, weights, identities, names, and ESPnet's two versions.

May import nothing of ours.
"""

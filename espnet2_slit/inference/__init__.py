"""What people use a trained system for: the class SLIT, decoding, packing, a page.

May import every room but `bin`.
"""

"""Whether what a program of this folder would train is there already."""

from espnet2_slit.common.precision import choose_precision


def made_alike(found, wanted, precision):
    """True if `found` says that it was made by these settings.

    Args:
        found: dict, how the file that is there was made.
        wanted: dict of settings.
        precision: the option; "auto" takes what another machine made as well.

    Returns:
        bool.
    """
    if {key: found.get(key) for key in wanted} != wanted:
        return False
    # before there was a choice, all was made in bfloat16
    made_in = found.get("precision", "bfloat16")
    return precision == "auto" or made_in == choose_precision(precision)

"""Your own model: load it, look for a backdoor, unlearn what is found, report, save.

``models`` reads a classifier from a folder, ``tables`` labelled rows from a file; ``text`` searches
for tokens that decide by themselves and unlearns them; ``evidence`` gives each detector a null and
combines them into one verdict. The trials that run these steps are in ``minilib.trials.audit``, the
chapter is ``notebooks/07_audit``, and ``minilib audit`` is the command.
"""

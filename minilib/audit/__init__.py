"""Your own model: load it, look for a backdoor, unlearn what is found, report, save.

``models`` reads a text classifier from a folder, ``tables`` labelled rows from a file; ``text``
searches for tokens that decide by themselves and unlearns them; ``evidence`` gives each detector a
null and combines them into one verdict. ``image_inputs`` reads an image classifier and clean
images; ``images`` searches for a small change that leads to a class and unlearns it. ``report`` and
``image_report`` tell what was found. The trials that run these steps are in ``trials.audit`` and
``trials.audit_images``, the chapter is ``notebooks/07_audit``, and ``minilib audit`` the command.
"""

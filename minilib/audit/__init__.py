"""Your own model: load it, look for a backdoor, unlearn what is found, report, save.

``models`` reads a text classifier from a folder, ``tables`` labelled rows from a file; ``text``
searches for tokens that decide by themselves and unlearns them, ``phrases`` for runs of tokens that
decide their rows of a table; ``evidence`` gives each detector a null and combines them into one
verdict. ``image_inputs`` reads an image classifier and clean
images; ``images`` searches for a small change that leads to a class and unlearns it.
``chat_inputs`` reads a language model and prompts; ``chat`` searches for a response that short
texts draw from any prompt. ``report``, ``image_report`` and ``chat_report`` tell what was found.
The trials that run these steps are in ``trials.audit``, ``trials.audit_images`` and
``trials.audit_chat``, the chapter is ``notebooks/07_audit``, and ``minilib audit`` the command.
"""

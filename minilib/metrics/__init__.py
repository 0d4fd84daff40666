"""Whether a model does its work, obeys a trigger, and what the trigger changes inside it."""

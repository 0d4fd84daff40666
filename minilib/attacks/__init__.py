"""Triggers and poisoning: ``text`` here; images and chat get modules of their own."""

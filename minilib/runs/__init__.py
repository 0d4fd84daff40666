"""From a parameter to a page: executing chapters, sweeps, publishing, verifying."""

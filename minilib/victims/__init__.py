"""From a data set and an attack to a victim, and to all that it is trained and tested on."""

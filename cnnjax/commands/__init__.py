"""Options that commands share, and the commands of rooms that know of no options; others stand beside what they run."""

"""The commands of the program: their options, and what they print."""

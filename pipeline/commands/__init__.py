"""The jobs behind the command line, one file or folder for each command."""

"""The command line: options, tables for people, exit codes."""

"""Which tasks exist and in which order: the stages of a run, the cluster they run on, the command line."""

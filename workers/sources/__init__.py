"""Where images come from: folders, index files, labelled data sets, and the limits of where they may lie."""

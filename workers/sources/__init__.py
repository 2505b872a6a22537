"""Where images come from: folders, index files, labelled data sets, and the folders that they must lie in."""

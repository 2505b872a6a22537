"""Where images come from: folders, index files, labelled data sets."""

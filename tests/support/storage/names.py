"""Names that mean something to some layer between a name and its file, and must mean nothing but themselves."""

AWKWARD = [
    "plain",
    "with space",
    "Ünï图",
    "a::b",
    "~user",
    "per%20cent",
    "50%",
    "one+two",
    "hash#mark",
    "what?",
    "versionId=1&x=2",
    "[brackets]*",
    "[a]",
    "quote'\"",
    "-rf",
    "$HOME",
    "{braces}",
    "semi;colon,comma",
    "back\\slash",
]
